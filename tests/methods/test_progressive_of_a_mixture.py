"""Progressive distillation learns from a closed-form teacher, four Gaussians in the plane, down to a single step."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from gendistill.config import halvings
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.prediction import Prediction
from gendistill.methods.progressive import halving_target, halving_times, prediction_loss
from gendistill.samplers import ddim_step
from gendistill.schedulers import NoiseSchedule, expand_to

SCHEDULE = NoiseSchedule.from_scheduler(DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
CENTRES = torch.tensor([[1.2, 0.0], [-1.2, 0.0], [0.0, 1.2], [0.0, -0.6]])
STD, BATCH = 0.15, 256


def draw_data(count, generator):
    chosen = torch.randint(len(CENTRES), (count,), generator=generator)
    return CENTRES[chosen] + STD * torch.randn(count, 2, generator=generator)


def exact_teacher(x_t, t):
    alpha, sigma = expand_to(SCHEDULE.alpha(t), x_t), expand_to(SCHEDULE.sigma(t), x_t)
    variance = alpha**2 * STD**2 + sigma**2
    offset = x_t[:, None] - alpha[:, None] * CENTRES  # (B, 4, 2)
    share = torch.softmax(-offset.square().sum(-1) / (2 * variance), dim=1)[..., None]
    x_0 = (share * (CENTRES + (alpha * STD**2 / variance)[:, None] * offset)).sum(1)
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


def small_student(prediction_type):
    """(x_t, t) -> Prediction; its network starts anew."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def call(network, x_t, t, conditioning):
        return network(torch.cat([x_t, (t / 500 - 1).to(x_t)[:, None]], dim=1))

    return Denoiser(layers, SCHEDULE, prediction_type, call)


def without_conditions(denoiser):
    return lambda x_t, t: denoiser(x_t, t, Conditioning())


def learn(student, target_of, stage, weighting, steps, generator):
    optimizer = torch.optim.Adam(student.network.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        row = torch.randint(len(stage.t), (BATCH,), generator=generator)
        t, middle, s = stage.t[row], stage.middle[row], stage.s[row]
        x_t = SCHEDULE.add_noise(draw_data(BATCH, generator), torch.randn(BATCH, 2, generator=generator), t)
        loss = prediction_loss(student(x_t, t, Conditioning()), target_of(x_t, t, middle, s), weighting)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


@torch.no_grad()
def sample(denoiser, num_steps, x):
    stage = halving_times(num_steps, SCHEDULE)
    for t, s in zip(stage.t, stage.s, strict=True):
        prediction = denoiser(x, t.expand(len(x)))
        x = ddim_step(prediction.x_0, prediction.eps, s.expand(len(x)), SCHEDULE)
    return x


def sliced_wasserstein(one, other, projections=64):
    directions = torch.randn(2, projections, generator=torch.Generator().manual_seed(7))
    directions /= directions.norm(dim=0)
    return ((one @ directions).sort(0).values - (other @ directions).sort(0).values).abs().mean().item()


def one_step_student_of(prediction_type, weighting, generator):
    """First fitted to the teacher in its own dialect, then halved from 8 steps to 1."""
    student = small_student(prediction_type)
    learn(student, lambda x_t, t, middle, s: exact_teacher(x_t, t), halving_times(8, SCHEDULE), weighting, 900, generator)
    for num_steps in halvings(8, 1):
        teacher = without_conditions(student.with_network(copy.deepcopy(student.network)))

        def target_of(x_t, t, middle, s, teacher=teacher):
            return halving_target(teacher, x_t, t, middle, s, SCHEDULE)

        learn(student, target_of, halving_times(num_steps, SCHEDULE), weighting, 250, generator)
    return without_conditions(student)


@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one"])
def test_one_step_of_a_student_that_predicts_v_is_almost_as_good_as_eight_of_its_teacher(weighting, generator):
    data, noise = draw_data(4000, generator), torch.randn(4000, 2, generator=generator)
    of_student = sliced_wasserstein(sample(one_step_student_of("v_prediction", weighting, generator), 1, noise), data)
    of_teacher = [sliced_wasserstein(sample(exact_teacher, num_steps, noise), data) for num_steps in (1, 8)]
    assert of_student < 0.2 * of_teacher[0]
    assert of_student < 2 * of_teacher[1]


def test_one_step_of_a_student_that_predicts_epsilon_is_worse_than_one_of_its_teacher(generator):
    """Why stages begin with another dialect: x_0 = (x_t - sigma eps) / alpha, and alpha is small."""
    data, noise = draw_data(4000, generator), torch.randn(4000, 2, generator=generator)
    of_student = sliced_wasserstein(sample(one_step_student_of("epsilon", "truncated_snr", generator), 1, noise), data)
    assert of_student > sliced_wasserstein(sample(exact_teacher, 1, noise), data)
