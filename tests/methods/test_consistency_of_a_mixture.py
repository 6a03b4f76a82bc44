"""Consistency distillation learns from a closed-form teacher: four Gaussians in the plane."""

import torch
from diffusers import DDPMScheduler
from torch import nn

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import full_networks
from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, expand_to

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
CENTRES = torch.tensor([[1.2, 0.0], [-1.2, 0.0], [0.0, 1.2], [0.0, -0.6]])
STD = 0.15
BATCH = 256


def draw_data(count, generator):
    chosen = torch.randint(len(CENTRES), (count,), generator=generator)
    return CENTRES[chosen] + STD * torch.randn(count, 2, generator=generator)


def posterior_mean(network, x_t, t, conditioning):
    """E[x_0 | x_t] of the mixture, in closed form."""
    alpha, sigma = expand_to(SCHEDULE.alpha(t), x_t), expand_to(SCHEDULE.sigma(t), x_t)
    variance = alpha**2 * STD**2 + sigma**2
    offset = x_t[:, None] - alpha[:, None] * CENTRES  # (B, 4, 2)
    share = torch.softmax(-offset.square().sum(-1) / (2 * variance), dim=1)[..., None]
    return (share * (CENTRES + (alpha * STD**2 / variance)[:, None] * offset)).sum(1)


class SmallNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {}
        self.layers = nn.Sequential(nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x_t, log_snr):
        return self.layers(torch.cat([x_t, log_snr[:, None] / 4], dim=1))


def call_small_network(network, x_t, t, conditioning):
    return network(x_t, SCHEDULE.log_snr(t).to(x_t))


def sliced_wasserstein(one, other, projections=64):
    directions = torch.randn(2, projections, generator=torch.Generator().manual_seed(7))
    directions /= directions.norm(dim=0)
    return ((one @ directions).sort(0).values - (other @ directions).sort(0).values).abs().mean().item()


def denoise_as_the_teacher(networks, steps, generator):
    """A student starts as its teacher; where that is a formula, it learns the formula."""
    optimizer = torch.optim.Adam(networks.trained.values(), 3e-3)
    for _ in range(steps):
        x_0, noise = draw_data(BATCH, generator), torch.randn(BATCH, 2, generator=generator)
        t = torch.randint(1000, (BATCH,), generator=generator)
        x_t = SCHEDULE.add_noise(x_0, noise, t)
        loss = (networks.student(x_t, t, Conditioning()).x_0 - posterior_mean(None, x_t, t, None)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    networks.update_average(0.0)


@torch.no_grad()
def one_step(denoiser, noise):
    return denoiser(noise, torch.full((len(noise),), 999), Conditioning()).x_0


def test_one_step_of_a_student_is_much_closer_to_the_data_than_one_step_of_its_teacher(generator):
    torch.manual_seed(0)
    networks = full_networks(Denoiser(SmallNetwork(), SCHEDULE, "sample", call_small_network))
    networks.teacher = Denoiser(None, SCHEDULE, "sample", posterior_mean)
    denoise_as_the_teacher(networks, 400, generator)
    config = ConsistencyConfig(num_ddim_timesteps=40, ema_decay=0.9, loss="l2")
    method = ConsistencyDistillation(networks, Guidance(Conditioning(), GuidanceConfig(scale=1.0)), config)
    optimizer = torch.optim.Adam(networks.trained.values(), 2e-3)
    for step in range(1, 601):
        batch = Batch(draw_data(BATCH, generator), Conditioning())
        for update in method.updates(batch, step, PerSampleRandom(0, step, 0, BATCH)):
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
        method.after_step(step)

    data, noise = draw_data(4000, generator), torch.randn(4000, 2, generator=generator)
    of_student = sliced_wasserstein(one_step(networks.average, noise), data)
    of_teacher = sliced_wasserstein(one_step(networks.teacher, noise), data)
    assert of_student < 0.5 * of_teacher
