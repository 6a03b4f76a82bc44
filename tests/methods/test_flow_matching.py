"""The methods on flow matching: a teacher rewritten as one of flow matching, and closed forms."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import full_networks
from gendistill.methods.alignment import AlignConfig, Alignment
from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
from gendistill.methods.latent_alignment import LatentAlignment
from gendistill.methods.progressive import ProgressiveConfig, StepHalving
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import dpm_solver_path
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, trailing

MEAN, STD, BATCH = torch.tensor([0.8, -0.5]), torch.tensor([0.3, 0.9]), 128
FLOWS = {shift: NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=shift)) for shift in (1.0, 3.0)}


def preserving_variance(flow):
    """The variance-preserving schedule with the signal-to-noise ratios of a flow."""
    t = torch.arange(flow.num_train_timesteps)
    return NoiseSchedule("vp", flow.num_train_timesteps, torch.atan2(flow.sigma(t), flow.alpha(t)))


class SmallNetwork(nn.Module):
    """x_t of unit variance for pure noise, and a signal-to-noise ratio, to x_0."""

    def __init__(self):
        super().__init__()
        self.config = {}
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x_t, log_snr):
        return self.layers(torch.cat([x_t, log_snr.clamp(-12, 12).to(x_t)[:, None] / 4], dim=1))


def gaussian(x_t, t, schedule):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""
    alpha, sigma = expand_to(schedule.alpha(t), x_t), expand_to(schedule.sigma(t), x_t)
    return MEAN + (x_t - alpha * MEAN) * alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)


def denoiser_of(network, schedule):
    """A denoiser of x_0 in which the same weights compute the same x_0 on any schedule with the same ratios."""

    def call(network, x_t, time, conditioning):
        t = schedule.index_of(time)
        if network is None:
            return gaussian(x_t, t, schedule)
        scale = (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt()
        return network(x_t / expand_to(scale, x_t), schedule.log_snr(t))

    return Denoiser(network, schedule, "sample", call)


def path(schedule, noise, steps=16):
    teacher = denoiser_of(None, schedule)
    points = dpm_solver_path(lambda x_t, t: teacher(x_t, t, Conditioning()), noise, trailing(steps), schedule)
    return points, torch.cat([trailing(steps), torch.tensor([schedule.clean])])


def method_of(name, schedule):
    torch.manual_seed(0)
    networks = full_networks(denoiser_of(SmallNetwork(), schedule))
    networks.teacher = denoiser_of(None, schedule)
    guidance = Guidance(Conditioning(), GuidanceConfig(scale=1.0))
    if name == "consistency":
        return ConsistencyDistillation(networks, guidance, ConsistencyConfig(num_ddim_timesteps=40, ema_decay=0.9, loss="l2"))
    if name == "phases":
        return ConsistencyDistillation(networks, guidance, ConsistencyConfig(num_phases=4, ema_decay=0.9))
    if name == "progressive":
        return StepHalving(networks, guidance, ProgressiveConfig(ema_decay=0.9), 2)
    return LatentAlignment({"student": Alignment(networks, AlignConfig(ema_decay=0.9), [2, 1])}, 0.9)


def train(name, schedule, steps, learning_rate, denoising=0):
    """The EMA after so many steps of a method, and before it of denoising, as a student starts from its teacher."""
    method, data = method_of(name, schedule), torch.Generator().manual_seed(1)
    networks = method.networks
    (parameters,) = method.trained_parameters().values()
    optimizer = torch.optim.Adam(parameters.values(), 3e-3)
    for _ in range(denoising):
        latents, noise = MEAN + STD * torch.randn(BATCH, 2, generator=data), torch.randn(BATCH, 2, generator=data)
        t = torch.randint(1000, (BATCH,), generator=data)
        x_t = schedule.add_noise(latents, noise, t)
        loss = (networks.student(x_t, t, Conditioning()).x_0 - gaussian(x_t, t, schedule)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    networks.update_average(0.0)
    optimizer = torch.optim.Adam(parameters.values(), learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        noise = torch.randn(BATCH, 2, generator=data)
        latents = MEAN + STD * torch.randn(BATCH, 2, generator=data)
        trajectories = None
        if name == "alignment":
            points, times = path(schedule, noise)
            latents, trajectories = points[:, -1], Trajectories(points, times, Conditioning())
        for update in method.updates(Batch(latents, Conditioning(), trajectories), step, PerSampleRandom(0, step, 0, BATCH)):
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
        method.after_step(step + 1)
    return networks.average


@pytest.mark.parametrize("name", ["consistency", "phases", "progressive", "alignment"])
@torch.no_grad()
def test_a_teacher_that_is_rewritten_as_one_of_flow_matching_has_the_same_student(name):
    flow = FLOWS[3.0]
    with torch.enable_grad():
        one, other = (train(name, schedule, 30, 1e-3).network for schedule in (flow, preserving_variance(flow)))
    x_t, log_snr = torch.randn(512, 2, generator=torch.Generator().manual_seed(5)), torch.linspace(-12, 12, 512)
    assert not torch.equal(one(x_t, log_snr), SmallNetwork()(x_t, log_snr))
    torch.testing.assert_close(one(x_t, log_snr), other(x_t, log_snr), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", FLOWS)
@pytest.mark.parametrize("name", ["consistency", "alignment"])
@torch.no_grad()
def test_one_step_of_a_student_is_the_end_of_the_trajectory_in_closed_form(name, shift, generator):
    """On a Gaussian the trajectory from pure noise eps ends at MEAN + STD eps, and the teacher's own step at MEAN."""
    with torch.enable_grad():
        student = train(name, FLOWS[shift], 400, 3e-3, denoising=300)
    noise = torch.randn(1000, 2, generator=generator)
    found = student(noise, torch.full((1000,), 999), Conditioning()).x_0
    error = (found - (MEAN + STD * noise)).square().mean().sqrt()
    assert error < 0.1
    assert STD.square().mean().sqrt() > 6 * error  # that of the teacher


@pytest.mark.parametrize("shift", FLOWS)
def test_trajectories_meet_their_closed_form_at_every_point(shift, generator):
    schedule, noise = FLOWS[shift], torch.randn(64, 2, generator=generator)
    for steps, error in ((50, 3e-2), (200, 4e-3)):
        points, times = path(schedule, noise, steps)
        alpha, sigma = (scale(times)[None, :, None] for scale in (schedule.alpha, schedule.sigma))
        exact = alpha * MEAN + (alpha**2 * STD**2 + sigma**2).sqrt() * noise[:, None]
        torch.testing.assert_close(points.double(), exact, atol=error, rtol=0)


def test_a_prediction_of_the_flow_is_the_velocity_of_the_path():
    schedule, x_0, eps = FLOWS[3.0], torch.randn(4, 2), torch.randn(4, 2)
    t = torch.full((4,), 400)
    teacher = Denoiser(None, schedule, "flow", lambda network, x_t, time, conditioning: eps - x_0)
    prediction = teacher(schedule.add_noise(x_0, eps, t), t, Conditioning())
    assert isinstance(prediction, Prediction)
    torch.testing.assert_close(prediction.x_0, x_0, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.eps, eps, atol=1e-5, rtol=0)
