import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from gendistill.samplers import ddim_step, dpm_solver_path, invert_ddim_step
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, flow_scheduler, trailing

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMES = [
    (DDIMScheduler(**BETAS), [999, 998, 500, 1, 0, -1]),
    (DDIMScheduler(**BETAS, rescale_betas_zero_snr=True), [999, 998, 500, 1, 0, -1]),
    (FlowMatchEulerDiscreteScheduler(), [999, 998, 500, 1, 0, -1]),
    (EDMEulerScheduler(), [999, 998, 500, 1, 0, -1]),
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


@pytest.mark.parametrize(
    ("scheduler", "count"), [(DDIMScheduler(**BETAS), 20), (FlowMatchEulerDiscreteScheduler(shift=3.0), 5)]
)
def test_dpm_solver_makes_diffusers_steps(scheduler, count, generator):
    """On a Gaussian, whose predictions are known at every time."""
    schedule, noise = NoiseSchedule.from_scheduler(scheduler), torch.randn(4, 3, 2, 2, generator=generator)
    flow = schedule.kind == "flow"

    def predict(x_t, t):
        alpha, sigma = (expand_to(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
        x_0 = (x_t - alpha * 0.3) * alpha * 0.25 / (0.25 * alpha**2 + sigma**2) + 0.3
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    theirs = flow_scheduler("dpm-solver++", schedule, False) if flow else DPMSolverMultistepScheduler(**BETAS)
    theirs.register_to_config(timestep_spacing="trailing")
    theirs.set_timesteps(count)
    x, timesteps = noise, trailing(count)
    for t, timestep in zip(timesteps, theirs.timesteps, strict=True):
        prediction = predict(x, t.expand(4))
        output = prediction.eps - prediction.x_0 if flow else prediction.eps
        x = theirs.step(output, timestep, x).prev_sample
    path = dpm_solver_path(predict, noise, timesteps, schedule)
    assert path.shape == (4, count + 1, 3, 2, 2)
    torch.testing.assert_close(path[:, -1], x, atol=5e-3 if flow else 1e-5, rtol=0)  # its sigmas of flow end at 0.999
