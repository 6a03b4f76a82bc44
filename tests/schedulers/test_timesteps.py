import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from gendistill.schedulers import nearest_divisors, skipping, student_scheduler, trailing


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


def test_the_nearest_divisors_are_those_on_both_sides():
    assert nearest_divisors(300) == [250, 500]
    assert nearest_divisors(40) == [40]
    assert nearest_divisors(40, 250) == [25, 50]
    assert nearest_divisors(2000, 1000) == [1000]


DIVISORS = [(count, steps) for steps in (1000, 250, 96) for count in range(2, steps + 1) if steps % count == 0]


@pytest.mark.parametrize(("num_ddim_timesteps", "num_train_timesteps"), DIVISORS)
def test_a_solver_grid_ends_where_every_sampler_begins_and_holds_all_of_its_timesteps(num_ddim_timesteps, num_train_timesteps):
    """For each K and each number of steps, divisors of K or not; one scheduler may serve several step counts."""
    grid, config = skipping(num_ddim_timesteps, num_train_timesteps), {"num_train_timesteps": num_train_timesteps}
    assert grid[-1] == num_train_timesteps - 1
    assert len(grid) == num_ddim_timesteps
    for solver in ("ddim", "lcm", "tcd"):
        for steps in ([1], [2, 1], [3], [4, 2, 1], [6, 4], [7]):
            if steps[0] > num_ddim_timesteps:
                continue
            arguments = solver, config, "epsilon", num_ddim_timesteps
            scheduler = student_scheduler(*arguments, trained_on_grid=True, steps=steps)
            for count in steps:
                scheduler.set_timesteps(count)
                assert scheduler.timesteps[0] == num_train_timesteps - 1
                assert torch.isin(scheduler.timesteps, grid).all(), (solver, count)
