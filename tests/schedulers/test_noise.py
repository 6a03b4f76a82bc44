import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch._subclasses.fake_tensor import FakeTensorMode

from gendistill.schedulers import NoiseSchedule, expand_to, flow_scheduler, trailing

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VARIANCE_PRESERVING = [
    *((kind, SCALED_LINEAR) for kind in (DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler)),
    *((kind, {"beta_schedule": "linear"}) for kind in (DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler)),
    *((kind, {"beta_schedule": "squaredcos_cap_v2"}) for kind in (DDPMScheduler, DDIMScheduler, PNDMScheduler)),
    *(
        (kind, {**SCALED_LINEAR, "rescale_betas_zero_snr": True})
        for kind in (DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler)
    ),
]
ALL = [
    *(kind(**config) for kind, config in VARIANCE_PRESERVING),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    EDMEulerScheduler(),
]


def interior_times(schedule, count=999):
    return torch.linspace(0.5, schedule.num_train_timesteps - 1.5, count, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "config"), VARIANCE_PRESERVING)
def test_alpha_squared_is_diffusers_alphas_cumprod_at_every_integer(kind, config):
    scheduler = kind(**config)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(1000)
    expected = torch.as_tensor(scheduler.alphas_cumprod).double()
    torch.testing.assert_close(schedule.alpha(t) ** 2, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - expected, atol=1e-12, rtol=0)


def test_zero_terminal_snr_has_no_signal_at_the_last_timestep():
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler(**SCALED_LINEAR, rescale_betas_zero_snr=True))
    assert schedule.alpha(999).item() == pytest.approx(0, abs=1e-12)
    assert schedule.sigma(999).item() == 1


def test_between_two_timesteps_a_variance_preserving_schedule_preserves_variance_and_falls():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**SCALED_LINEAR))
    t = torch.linspace(0, 999, 5000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert (schedule.log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_has_diffusers_sigmas_at_its_timesteps(shift, generator):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])  # as the pipelines of Flux ask: the trailing timesteps
    t = trailing(4)
    torch.testing.assert_close(schedule.sigma(t).float(), scheduler.sigmas[:-1])
    torch.testing.assert_close(schedule.network_time(t), scheduler.timesteps)
    torch.testing.assert_close(schedule.index_of(scheduler.timesteps), t.double(), atol=1e-3, rtol=0)
    x_0, noise = torch.randn(2, 4, 3, 2, 2, generator=generator)
    torch.testing.assert_close(schedule.add_noise(x_0, noise, t), scheduler.scale_noise(x_0, scheduler.timesteps, noise))


@pytest.mark.parametrize("passes_sigmas", [True, False])
@pytest.mark.parametrize("solver", ["ddim", "lcm"])
def test_a_scheduler_of_flow_matching_visits_the_trailing_grid_at_any_number_of_steps(solver, passes_sigmas):
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))
    scheduler = flow_scheduler(solver, schedule, passes_sigmas)
    for count in (1, 2, 3, 4, 8):
        given = {"sigmas": torch.linspace(1, 1 / count, count).tolist()} if passes_sigmas else {"num_inference_steps": count}
        scheduler.set_timesteps(**given)
        torch.testing.assert_close(scheduler.sigmas[:-1], schedule.sigma(trailing(count)).float(), atol=1e-3, rtol=0)


def test_fresh_noise_of_a_pipeline_that_passes_no_sigmas_is_that_of_the_posterior():
    """Of x_s given x_t and x_0, under the forward process from s to t (Ho et al. 2020, eq. 7)."""
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))
    scheduler = flow_scheduler("lcm", schedule, passes_sigmas=False)
    scheduler.set_timesteps(4)
    x_t, velocity, noise = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    sigma = scheduler.sigmas.double()
    for number, t in enumerate(scheduler.timesteps):
        x_s = scheduler.step(velocity, t, x_t, variance_noise=noise).prev_sample.double()
        x_0, (high, low) = x_t - sigma[number] * velocity, sigma[number : number + 2]
        kept = (1 - high) / (1 - low)
        fresh = (high**2 - (kept * low) ** 2) / high**2
        expected = kept * low**2 / high**2 * x_t + (1 - low) * fresh * x_0 + low * fresh.sqrt() * noise
        torch.testing.assert_close(x_s, expected, atol=1e-5, rtol=0)


def test_a_dynamic_shift_is_that_of_the_size_and_needs_one():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    schedule = NoiseSchedule.from_scheduler(scheduler, 1024)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(1024))
    torch.testing.assert_close(schedule.sigma(trailing(4)).float(), scheduler.sigmas[:-1])
    with pytest.raises(ValueError, match=r"^scheduler: use_dynamic_shifting needs the size of the images; expects a model"):
        NoiseSchedule.from_scheduler(scheduler)


def test_edm_has_diffusers_sigmas_at_its_timesteps_in_samples_of_unit_variance():
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(4)  # at 0, 1/3, 2/3 and 1 of the grid
    schedule, t = NoiseSchedule.from_scheduler(scheduler), torch.tensor([999, 666, 333, 0])
    sigma = schedule.sigma(t) / schedule.alpha(t) * scheduler.config.sigma_data
    torch.testing.assert_close(sigma.float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.network_time(t), scheduler.timesteps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(schedule.index_of(scheduler.timesteps), t.double(), atol=0.05, rtol=0)


@pytest.mark.parametrize(("kind", "config"), VARIANCE_PRESERVING)
def test_add_noise_is_diffusers_add_noise(kind, config, generator):
    schedule = NoiseSchedule.from_scheduler(kind(**config))
    scheduler = DDPMScheduler(**config)
    scheduler.alphas_cumprod = torch.as_tensor(kind(**config).alphas_cumprod)
    x_0, noise = torch.randn(2, 6, 4, 3, 3, generator=generator)
    t = torch.tensor([0, 1, 250, 500, 998, 999])
    noisy = schedule.add_noise(x_0, noise, t)
    assert noisy.dtype == x_0.dtype
    torch.testing.assert_close(noisy, scheduler.add_noise(x_0, noise, t), atol=1e-6, rtol=1e-6)


def test_values_of_a_batch_are_expanded_to_its_dimensions_and_dtype():
    expanded = expand_to(torch.arange(3, dtype=torch.float64), torch.zeros(3, 4, 2, 2))
    assert expanded.shape == (3, 1, 1, 1)
    assert expanded.dtype == torch.float32
    assert expand_to(torch.tensor(2.0), torch.zeros(3, 4)).shape == ()


def test_a_scheduler_without_a_known_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match=r"ScoreSdeVeScheduler has no known noise schedule; expects any with"):
        NoiseSchedule.from_scheduler(ScoreSdeVeScheduler())


@pytest.mark.parametrize("scheduler", ALL, ids=lambda scheduler: type(scheduler).__name__)
def test_at_the_clean_time_there_is_all_signal_and_no_noise(scheduler):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule.alpha(schedule.clean) == 1
    assert schedule.sigma(schedule.clean) == 0


@pytest.mark.parametrize("scheduler", ALL, ids=lambda scheduler: type(scheduler).__name__)
def test_noise_added_in_two_parts_is_noise_added_at_once(scheduler, generator):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    times = interior_times(schedule, 5)
    x_0, nothing = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    nothing = 0 * nothing
    for s, t in itertools.combinations([torch.tensor(schedule.clean), *times], 2):
        kept = schedule.perturb(schedule.alpha(s) * x_0, nothing, s, t)  # the mean of x_t given x_0
        torch.testing.assert_close(kept, schedule.alpha(t) * x_0)
        through_s = schedule.perturb(schedule.sigma(s) * torch.ones(1, dtype=torch.float64), nothing[0, :1], s, t)
        fresh = schedule.perturb(nothing[0, :1], torch.ones(1, dtype=torch.float64), s, t)
        torch.testing.assert_close(through_s**2 + fresh**2, schedule.sigma(t).reshape(1) ** 2)  # and its variance


@pytest.mark.parametrize(
    ("betas", "sentence"),
    [
        (
            [0.1, 0.2, -0.3, 0.1],
            "runs backwards: alpha_bar is 0.72 at timestep 1 and 0.936 at 2; expects an alpha_bar that falls",
        ),
        ([0.0, 0.0, 0.0], "is constant: alpha_bar is 1 at timestep 0 and 1 at 1"),
        ([0.1, float("nan")], "with values that are not finite; expects betas from 0 to 1"),
    ],
)
def test_a_noise_schedule_that_adds_no_noise_is_refused(betas, sentence):
    scheduler = DDIMScheduler(trained_betas=betas, num_train_timesteps=len(betas))
    with pytest.raises(ValueError, match=f"scheduler DDIMScheduler has a noise schedule (that )?{sentence}"):
        NoiseSchedule.from_scheduler(scheduler)


@pytest.mark.skipif(
    torch.__version__ < (2, 7) and not torch.cuda.is_available(), reason="fake tensors of a GPU need its driver with torch 2.6"
)
def test_a_time_on_a_gpu_is_never_read_on_the_host():
    """Only shapes and devices are computed, so this needs no GPU; a value read on the host would be a CPU tensor."""
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler())
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, t = torch.empty(4, 3, 8, 8, device="cuda"), torch.empty(4, dtype=torch.int64, device="cuda")
        values = [schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t), schedule.perturb(x, x, t, t)]
        assert {value.device.type for value in values} == {"cuda"}
