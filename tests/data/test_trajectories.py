"""Ways of the teacher from noise to latents: painted once, as diffusers paints them."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from gendistill.data.encode import prepare_data
from gendistill.data.trajectories import paint_trajectories
from gendistill.diffusion.settings import AlignConfig
from gendistill.run.config import DataConfig, GuidanceConfig
from gendistill.runtime.random import PerSampleRandom

ALIGN = AlignConfig(trajectories=6, trajectory_steps=4)
GUIDED = GuidanceConfig(scale=3.0)


@pytest.fixture
def data(teacher, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    config = DataConfig(
        prompts=str(tmp_path / "prompts.txt"), cache=str(tmp_path / "cache"), num_synthetic=4, synthetic_steps=2
    )
    return prepare_data(config, teacher, 0)


def paint(teacher, data, tmp_path, config=ALIGN, guidance=GUIDED, progress=None):
    return paint_trajectories(teacher, data, config, guidance, str(tmp_path / "ways"), progress)


def ways_of(painted, size=6, step=0):
    rows = painted.rows_of_step(5, step, size)
    return painted.batch(rows, PerSampleRandom(5, step, 0, size)).ways


def test_a_way_ends_where_diffusers_own_pipeline_paints_from_its_noise(teacher, data, tmp_path):
    ways = ways_of(paint(teacher, data, tmp_path))
    assert ways.points.shape[1] == len(ways.times) == 5
    pipeline = teacher.pipeline
    stock = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(stock.config, timestep_spacing="trailing")
    edge = ways.noise.shape[-1] * teacher.codec.factor
    latents = pipeline(
        prompt_embeds=ways.conditioning["prompt_embeds"].float(),
        negative_prompt_embeds=teacher.unconditional()["prompt_embeds"].expand(6, -1, -1),
        latents=ways.noise.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=edge,
        width=edge,
        output_type="latent",
    ).images
    torch.testing.assert_close(ways.latents, latents, atol=5e-3, rtol=5e-3)  # kept in half precision
    assert ways.times.tolist() == [999, 749, 499, 249, -1]


def test_ways_are_painted_once_and_anew_where_the_guidance_changes(teacher, data, tmp_path):
    painted = []
    first = paint(teacher, data, tmp_path, progress=painted.append)
    again = paint(teacher, data, tmp_path, progress=painted.append)
    assert sum(painted) == len(first) == 6
    assert torch.equal(ways_of(first).points, ways_of(again).points)
    other = paint(teacher, data, tmp_path, guidance=GuidanceConfig(scale=1.0), progress=painted.append)
    assert sum(painted) == 12
    assert not torch.equal(ways_of(first).points, ways_of(other).points)
    assert torch.equal(ways_of(first).noise, ways_of(other).noise)


def test_every_way_is_seen_as_often_as_any_other_beside_the_data(teacher, data, tmp_path):
    painted = paint(teacher, data, tmp_path)
    rows = torch.cat([painted.rows_of_step(5, step, 4) for step in range(3)])
    assert sorted(rows[:, 0].tolist()) == sorted([*range(6)] * 2)
    assert sorted(rows[:, 1].tolist()) == sorted([*range(4)] * 3)
    batch = painted.batch(rows[:4], PerSampleRandom(5, 0, 0, 4))
    assert batch.latents.shape == batch.ways.latents.shape
    assert painted.summary()["trajectories"] == 6


def test_a_student_with_a_slider_learns_of_ways_at_scales_of_its_range(teacher, data, tmp_path):
    guidance = GuidanceConfig(mode="embedded", range=(2.0, 5.0))
    scales = ways_of(paint(teacher, data, tmp_path, guidance=guidance)).conditioning.get("guidance_scale")
    assert scales.shape == (6,)
    assert 2 <= scales.min() < scales.max() <= 5
