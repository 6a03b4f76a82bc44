import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from gendistill.schedulers import skipping, trailing


@pytest.mark.parametrize("num_inference_steps", range(1, 51))
def test_the_trailing_grid_is_that_of_diffusers_ddim(num_inference_steps):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(num_inference_steps)
    assert torch.equal(trailing(num_inference_steps), scheduler.timesteps)


@pytest.mark.parametrize("num_ddim_timesteps", [10, 20, 40, 50, 100])
def test_the_skipping_grid_is_that_of_diffusers_lcm_scheduler(num_ddim_timesteps):
    scheduler = LCMScheduler(original_inference_steps=num_ddim_timesteps)
    scheduler.set_timesteps(num_ddim_timesteps)
    assert torch.equal(skipping(num_ddim_timesteps), scheduler.timesteps.flip(0))


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4])
def test_a_student_is_sampled_at_timesteps_that_it_was_trained_at(num_inference_steps):
    assert torch.isin(trailing(num_inference_steps), skipping(40)).all()
