"""The timesteps at which ComfyUI samples a student, by its formulas, beside those of the student's own scheduler."""

import pytest
import torch
from diffusers import DDIMScheduler

from gendistill.schedulers import NoiseSchedule, student_scheduler

CONFIG = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
SCHEDULE = NoiseSchedule.from_scheduler(DDIMScheduler.from_config(CONFIG))
SIGMAS = SCHEDULE.sigma(torch.arange(1000)) / SCHEDULE.alpha(torch.arange(1000))  # noise of x_0 + sigma eps


def sgm_uniform(steps):
    """Noise levels at equal distances of the (fractional) timestep, from the last one to 0, which is left out."""
    times = torch.linspace(999, 0, steps + 1, dtype=torch.float64)[:-1]
    low = times.floor().long().clamp(max=998)
    return torch.lerp(SIGMAS.log()[low], SIGMAS.log()[low + 1], times - low).exp()


def ddim_uniform(steps):
    """Every (1000 // steps)-th noise level, counted from the second one."""
    return SIGMAS[1 :: 1000 // steps].flip(0)


def network_timesteps(sigmas):
    """The timestep that the network gets: that of the nearest noise level."""
    return (sigmas.log()[:, None] - SIGMAS.log()).abs().argmin(1)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("solver", ["ddim", "lcm"])
def test_sgm_uniform_is_our_trailing_grid_to_one_timestep(solver, steps):
    scheduler = student_scheduler(solver, CONFIG, "epsilon", 40, steps=[steps])
    scheduler.set_timesteps(steps)
    difference = network_timesteps(sgm_uniform(steps)) - scheduler.timesteps
    assert difference[0] == 0
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("steps", [2, 4, 5, 8])
def test_ddim_uniform_begins_a_whole_step_lower(steps):
    assert network_timesteps(ddim_uniform(steps))[0] <= 999 - 1000 // steps + 2


def test_an_euler_step_is_a_ddim_step(generator):
    """x / alpha moves along a straight line in sigma / alpha, whose direction is eps (Song et al. 2021, eq. 14)."""
    x_0, eps = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    t, s = torch.tensor(999), torch.tensor(749)
    x_t, x_s = (SCHEDULE.alpha(u) * x_0 + SCHEDULE.sigma(u) * eps for u in (t, s))
    euler = x_t / SCHEDULE.alpha(t) + (SIGMAS[s] - SIGMAS[t]) * eps
    torch.testing.assert_close(euler, x_s / SCHEDULE.alpha(s))
