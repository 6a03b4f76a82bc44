"""Ways that end where a student paints."""

import pytest
import torch
from diffusers import DDIMScheduler

from gendistill.data.data_config import DataConfig
from gendistill.data.encode import prepare_data
from gendistill.data.generations import ending_with
from gendistill.data.trajectories import generate_trajectories
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.runtime.random import PerSampleRandom


@pytest.fixture
def painted(teacher, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    prompts = str(tmp_path / "prompts.txt")
    config = DataConfig(prompts=prompts, cache=str(tmp_path / "cache"), num_synthetic=4, synthetic_steps=2)
    data = prepare_data(config, teacher, 0)
    return generate_trajectories(teacher, data, GuidanceConfig(), str(tmp_path / "cache"), count=5, steps=3)


def ways_of(painted):
    rows = torch.stack([torch.arange(5), torch.arange(5) % 4], 1)
    return painted.batch(rows, PerSampleRandom(0, 0, 0, 5)).ways


@torch.no_grad()
def test_they_end_where_diffusers_ddim_comes_to_with_the_student_and_are_the_teachers_before(teacher, painted, tmp_path):
    scheduler = DDIMScheduler.from_config(
        teacher.pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    scheduler.set_timesteps(2)
    before, after = ways_of(painted), ways_of(ending_with(painted, teacher.denoiser, 2, str(tmp_path / "cache")))
    x = before.noise
    for t in scheduler.timesteps:
        x = scheduler.step(teacher.network(x, t, before.conditioning["prompt_embeds"].float()).sample, t, x).prev_sample
    torch.testing.assert_close(after.latents, x, atol=5e-3, rtol=5e-3)  # kept in half precision
    assert torch.equal(after.points[:, :-1], before.points[:, :-1])
    assert not torch.allclose(after.latents, before.latents, atol=0.05)


def test_another_student_paints_other_ends(teacher, painted, tmp_path):
    cache = str(tmp_path / "cache")
    first = ending_with(painted, teacher.denoiser, 1, cache)
    assert ending_with(painted, teacher.denoiser, 1, cache).ends.key == first.ends.key
    with torch.no_grad():
        teacher.network.conv_out.weight.mul_(0.5)
    second = ending_with(painted, teacher.denoiser, 1, cache)
    assert not torch.equal(ways_of(first).latents, ways_of(second).latents)
