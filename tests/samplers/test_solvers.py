import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from gendistill.samplers import ddim_step, invert_ddim_step
from gendistill.schedulers import NoiseSchedule

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMES = [
    (DDIMScheduler(**BETAS), [999, 998, 500, 1, 0, -1]),
    (DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), [999, 998, 500, 1, 0, -1]),
    (FlowMatchEulerDiscreteScheduler(), [1000.0, 999.0, 500.0, 1.0, 0.0]),
    (EDMEulerScheduler(), [math.log(80) / 4, 0.5, 0.0, -1.5, -math.inf]),
]


@pytest.mark.parametrize(("scheduler", "times"), TIMES)
def test_a_ddim_step_is_undone_between_any_two_times(scheduler, times, generator):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    x_0, eps = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    for place, t in enumerate(times[:-1]):
        for s in times[place + 1 :]:
            t, s = torch.as_tensor(t).expand(3), torch.as_tensor(s).expand(3)
            x_t, x_s = ddim_step(x_0, eps, t, schedule), ddim_step(x_0, eps, s, schedule)
            found = invert_ddim_step(x_t, t, x_s, s, schedule)
            torch.testing.assert_close(found, (x_0, eps), atol=1e-9, rtol=1e-9)


def test_a_ddim_step_to_the_clean_time_is_x_0(generator):
    x_0, eps = torch.randn(2, 3, 4, generator=generator)
    for scheduler, _ in TIMES:
        schedule = NoiseSchedule.from_scheduler(scheduler)
        assert torch.equal(ddim_step(x_0, eps, torch.tensor(schedule.clean).expand(3), schedule), x_0)
