"""Latent alignment learns from a closed-form teacher: four Gaussians in the plane."""

import itertools

import pytest
import torch
from test_consistency_of_a_mixture import (
    CENTRES,
    SCHEDULE,
    STD,
    SmallNetwork,
    call_small_network,
    draw_data,
    posterior_mean,
    sliced_wasserstein,
)

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.latent_discriminator import LatentDiscriminator
from gendistill.diffusion.trained_networks import full_networks
from gendistill.methods.alignment import AlignConfig, Alignment
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.methods.latent_alignment import LatentAlignment
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import trailing

WAYS, STEPS, BATCH = 2048, 32, 256
OFF = {"pseudo_huber": 0}


@pytest.fixture(scope="module")
def trajectories():
    """Of the exact teacher, by many small steps."""
    x = torch.randn(WAYS, 2, generator=torch.Generator().manual_seed(3))
    teacher = Denoiser(None, SCHEDULE, "sample", posterior_mean)
    times, points = torch.cat([trailing(STEPS), torch.tensor([0])]), [x]
    for t, s in itertools.pairwise(times):
        said = teacher(x, t.expand(WAYS), Conditioning())
        x = ddim_step(said.x_0, said.eps, s.expand(WAYS), SCHEDULE)
        points.append(x)
    return Trajectories(torch.stack(points, 1), times, Conditioning())


def method_of(steps=(2, 1), **settings):
    torch.manual_seed(0)
    config = AlignConfig(**settings)
    networks = full_networks(Denoiser(SmallNetwork(), SCHEDULE, "sample", call_small_network))
    adversary = LatentAdversary(LatentDiscriminator((2,)), SCHEDULE) if config.distribution.adversarial else None
    return LatentAlignment({"student": Alignment(networks, config, steps, adversary=adversary)}, config.ema_decay)


def student_of(trajectories, steps, **settings):
    method = method_of(**settings)
    optimizers = {
        name: torch.optim.Adam(
            of.values(), 3e-3 * method.optimizer_settings(name).learning_rate_factor, method.optimizer_settings(name).betas
        )
        for name, of in method.trained_parameters().items()
    }
    rows = torch.Generator().manual_seed(1)
    for step in range(steps):
        chosen = torch.randint(WAYS, (BATCH,), generator=rows)
        batch = Batch(
            trajectories.latents[chosen],
            Conditioning(),
            Trajectories(trajectories.points[chosen], trajectories.times, Conditioning()),
        )
        for update in method.updates(batch, step, PerSampleRandom(0, step, 0, BATCH)):
            update.loss.backward()
            optimizers[update.optimizers[0]].step()
            optimizers[update.optimizers[0]].zero_grad()
        method.after_step(step + 1)
    return method.networks.average


@torch.no_grad()
def generated(denoiser, steps, generator, count=2000):
    x = torch.randn(count, 2, generator=generator)
    times = [*trailing(steps), torch.tensor(0)]
    for t, s in itertools.pairwise(times):
        said = denoiser(x, t.expand(count), Conditioning())
        x = said.x_0 if s == 0 else ddim_step(said.x_0, said.eps, s.expand(count), SCHEDULE)
    return x


def shares(samples):
    """How many are nearest to each centre, of those within four deviations of it."""
    distances = torch.cdist(samples, CENTRES)
    near = distances.min(1)
    return torch.bincount(near.indices[near.values < 4 * STD], minlength=len(CENTRES)) / len(samples)


def test_one_and_two_steps_of_the_student_end_where_the_teachers_trajectories_end(trajectories, generator):
    student = student_of(trajectories, 600)
    data, other = draw_data(2000, generator), draw_data(2000, generator)
    for steps in (1, 2):
        samples = generated(student, steps, generator)
        assert sliced_wasserstein(samples, data) < 0.12, steps
        assert shares(samples).min() > 0.15, steps
    teacher = Denoiser(None, SCHEDULE, "sample", posterior_mean)
    assert sliced_wasserstein(generated(teacher, 1, generator), data) > 0.4
    assert sliced_wasserstein(other, data) < 0.05


@pytest.mark.parametrize(("loss", "steps"), [("sliced_wasserstein", 400), ("mmd", 400), ("adversarial", 600)])
def test_each_distribution_loss_alone_recovers_all_modes(loss, steps, trajectories, generator):
    student = student_of(trajectories, steps, match=OFF, distribution={loss: 1}, start_fraction=1)
    found = shares(generated(student, 1, generator))
    assert found.sum() > 0.6
    assert found.min() > 0.1
