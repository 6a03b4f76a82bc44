"""Ways of the teacher from noise to latents: generated once, as diffusers generates them."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from gendistill.data.data_config import DataConfig
from gendistill.data.encode import prepare_data
from gendistill.data.trajectories import ending_with, generate_trajectories
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.runtime.random import PerSampleRandom

GUIDED = GuidanceConfig(scale=3.0)


@pytest.fixture
def data(teacher, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    config = DataConfig(
        prompts=str(tmp_path / "prompts.txt"), cache=str(tmp_path / "cache"), num_synthetic=4, synthetic_steps=2
    )
    return prepare_data(config, teacher, 0)


def generate(teacher, data, tmp_path, guidance=GUIDED, progress=None):
    return generate_trajectories(teacher, data, guidance, str(tmp_path / "trajectories"), count=6, steps=4, progress=progress)


def ways_of(generated, size=6, step=0):
    rows = generated.rows_of_step(5, step, size)
    return generated.batch(rows, PerSampleRandom(5, step, 0, size)).trajectories


def test_a_way_ends_where_diffusers_own_pipeline_generates_from_its_noise(teacher, data, tmp_path):
    trajectories = ways_of(generate(teacher, data, tmp_path))
    assert trajectories.points.shape[1] == len(trajectories.times) == 5
    pipeline = teacher.pipeline
    stock = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(stock.config, timestep_spacing="trailing")
    edge = trajectories.noise.shape[-1] * teacher.codec.factor
    latents = pipeline(
        prompt_embeds=trajectories.conditioning["prompt_embeds"].float(),
        negative_prompt_embeds=teacher.unconditional()["prompt_embeds"].expand(6, -1, -1),
        latents=trajectories.noise.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=edge,
        width=edge,
        output_type="latent",
    ).images
    torch.testing.assert_close(trajectories.latents, latents, atol=5e-3, rtol=5e-3)  # kept in half precision
    assert trajectories.times.tolist() == [999, 749, 499, 249, -1]


def test_ways_are_generated_once_and_anew_where_the_guidance_changes(teacher, data, tmp_path):
    generated = []
    first = generate(teacher, data, tmp_path, progress=generated.append)
    again = generate(teacher, data, tmp_path, progress=generated.append)
    assert sum(generated) == len(first) == 6
    assert torch.equal(ways_of(first).points, ways_of(again).points)
    other = generate(teacher, data, tmp_path, guidance=GuidanceConfig(scale=1.0), progress=generated.append)
    assert sum(generated) == 12
    assert not torch.equal(ways_of(first).points, ways_of(other).points)
    assert torch.equal(ways_of(first).noise, ways_of(other).noise)


def test_every_way_is_seen_as_often_as_any_other_beside_the_data(teacher, data, tmp_path):
    generated = generate(teacher, data, tmp_path)
    rows = torch.cat([generated.rows_of_step(5, step, 4) for step in range(3)])
    assert sorted(rows[:, 0].tolist()) == sorted([*range(6)] * 2)
    assert sorted(rows[:, 1].tolist()) == sorted([*range(4)] * 3)
    batch = generated.batch(rows[:4], PerSampleRandom(5, 0, 0, 4))
    assert batch.latents.shape == batch.trajectories.latents.shape
    assert generated.summary()["trajectories"] == 6


def test_a_student_with_a_slider_learns_of_ways_at_scales_of_its_range(teacher, data, tmp_path):
    guidance = GuidanceConfig(mode="embedded", range=(2.0, 5.0))
    scales = ways_of(generate(teacher, data, tmp_path, guidance=guidance)).conditioning.get("guidance_scale")
    assert scales.shape == (6,)
    assert 2 <= scales.min() < scales.max() <= 5


@torch.no_grad()
def test_ways_of_the_next_generation_end_where_diffusers_ddim_comes_to_with_the_student(teacher, data, tmp_path):
    generated = generate(teacher, data, tmp_path)
    scheduler = DDIMScheduler.from_config(
        teacher.pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    scheduler.set_timesteps(2)
    before, after = ways_of(generated), ways_of(ending_with(generated, teacher.denoiser, 2, str(tmp_path / "cache")))
    x = before.noise
    for t in scheduler.timesteps:
        x = scheduler.step(teacher.network(x, t, before.conditioning["prompt_embeds"].float()).sample, t, x).prev_sample
    torch.testing.assert_close(after.latents, x, atol=5e-3, rtol=5e-3)  # kept in half precision
    assert torch.equal(after.points[:, :-1], before.points[:, :-1])
    assert not torch.allclose(after.latents, before.latents, atol=0.05)


def test_another_student_generates_other_ends(teacher, data, tmp_path):
    generated = generate(teacher, data, tmp_path)
    cache = str(tmp_path / "cache")
    first = ending_with(generated, teacher.denoiser, 1, cache)
    assert ending_with(generated, teacher.denoiser, 1, cache).ends.key == first.ends.key
    with torch.no_grad():
        teacher.network.conv_out.weight.mul_(0.5)
    second = ending_with(generated, teacher.denoiser, 1, cache)
    assert not torch.equal(ways_of(first).latents, ways_of(second).latents)
