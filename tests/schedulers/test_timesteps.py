import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from gendistill.schedulers import NoiseSchedule, karras, leading, linspace, skipping, trailing, uniform_log_snr

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = [SCALED_LINEAR, {**SCALED_LINEAR, "rescale_betas_zero_snr": True}, {"beta_schedule": "linear"}]


def of_ddim(num_inference_steps, **config):
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler.timesteps


@pytest.mark.parametrize("num_inference_steps", range(1, 51))
def test_the_three_spacings_are_those_of_diffusers_ddim(num_inference_steps):
    assert torch.equal(trailing(num_inference_steps), of_ddim(num_inference_steps, timestep_spacing="trailing"))
    assert torch.equal(linspace(num_inference_steps), of_ddim(num_inference_steps, timestep_spacing="linspace"))
    for steps_offset in (0, 1):
        expected = of_ddim(num_inference_steps, timestep_spacing="leading", steps_offset=steps_offset)
        assert torch.equal(leading(num_inference_steps, steps_offset=steps_offset), expected)


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 4, 5, 8, 10, 16, 20, 25])
@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize(("setting", "grid"), [("use_karras_sigmas", karras), ("use_lu_lambdas", uniform_log_snr)])
def test_karras_and_log_snr_grids_are_those_of_diffusers_dpm_solver(setting, grid, config, num_inference_steps):
    scheduler = DPMSolverMultistepScheduler(**config, **{setting: True})
    scheduler.set_timesteps(num_inference_steps)
    ours = grid(num_inference_steps, NoiseSchedule.from_scheduler(DDIMScheduler(**config)))
    visited_again = num_inference_steps - len(scheduler.timesteps.unique())  # theirs may be at a timestep twice
    assert (ours - scheduler.timesteps).abs().max() <= visited_again
    assert (ours.diff() < 0).all()


def test_the_karras_grid_is_that_of_diffusers_euler():
    scheduler = EulerDiscreteScheduler(**SCALED_LINEAR, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    assert torch.equal(karras(12, NoiseSchedule.from_scheduler(scheduler)), scheduler.timesteps.round().long())


@pytest.mark.parametrize("grid", [karras, uniform_log_snr])
@pytest.mark.parametrize("num_train_timesteps", [20, 1000])
def test_as_many_steps_as_there_are_timesteps_visit_each_once_and_more_are_refused(grid, num_train_timesteps):
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler(num_train_timesteps))
    assert torch.equal(grid(num_train_timesteps, schedule), torch.arange(num_train_timesteps).flip(0))
    with pytest.raises(ValueError, match=f"{num_train_timesteps + 1} steps: takes at most the {num_train_timesteps} timesteps"):
        grid(num_train_timesteps + 1, schedule)


@pytest.mark.parametrize("grid", [karras, uniform_log_snr])
def test_a_schedule_without_a_table_has_no_grid_of_integers(grid):
    with pytest.raises(ValueError, match="kind flow has no table of timesteps; takes vp"):
        grid(4, NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler()))


@pytest.mark.parametrize("num_ddim_timesteps", [10, 20, 40, 50, 100])
def test_the_skipping_grid_is_that_of_diffusers_lcm_scheduler(num_ddim_timesteps):
    scheduler = LCMScheduler(original_inference_steps=num_ddim_timesteps)
    scheduler.set_timesteps(num_ddim_timesteps)
    assert torch.equal(skipping(num_ddim_timesteps), scheduler.timesteps.flip(0))


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4])
def test_a_student_is_sampled_at_timesteps_that_it_was_trained_at(num_inference_steps):
    assert torch.isin(trailing(num_inference_steps), skipping(40)).all()
