"""Progressive distillation learns from a closed-form teacher, four Gaussians in the plane, down to a single step."""

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from gendistill.diffusion.denoiser import Denoiser
from gendistill.methods.halving import Halving, halving_target, halving_times, halvings
from gendistill.methods.progressive import prediction_loss
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to

SCHEDULE = NoiseSchedule.from_scheduler(DDIMScheduler(beta_schedule="squaredcos_cap_v2"))
CENTRES = torch.tensor([[1.2, 0.0], [-1.2, 0.0], [0.0, 1.2], [0.0, -0.6]])
STD = 0.15


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


def small_student(prediction_type, width=96, layers=2):
    """(x_t, t) -> Prediction; its network starts anew."""
    torch.manual_seed(0)
    widths = [5, *[width] * layers]
    parts = [part for one, other in pairwise(widths) for part in (nn.Linear(one, other), nn.SiLU())]
    layers = nn.Sequential(*parts, nn.Linear(width, 2))

    def call(network, x_t, t, conditioning):
        level = (SCHEDULE.log_snr(t) / 5).to(x_t)[:, None]
        return network(torch.cat([x_t, level.tanh(), (3 * level).sin(), (3 * level).cos()], dim=1))

    return Denoiser(layers, SCHEDULE, prediction_type, call)


def without_conditions(denoiser):
    return lambda x_t, t: denoiser(x_t, t, Conditioning())


def learn(student, target_of, stage, weighting, steps, generator, batch=256):
    optimizer = torch.optim.Adam(student.network.parameters(), 3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        row = torch.randint(len(stage.t), (batch,), generator=generator)
        t, middle, s = stage.t[row], stage.middle[row], stage.s[row]
        noise = torch.randn(batch, 2, generator=generator)
        x_t = torch.where((row == 0)[:, None], noise, SCHEDULE.add_noise(draw_data(batch, generator), noise, t))
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


def fitted_to_its_teacher(student, num_steps, weighting, steps, generator, batch=256):
    """In its own dialect, at the times that a teacher of `num_steps` visits."""
    stage = halving_times(num_steps // 2, SCHEDULE)
    times = torch.stack([stage.t, stage.middle], 1).flatten()
    every = Halving(times, times, times)
    learn(student, lambda x_t, t, middle, s: exact_teacher(x_t, t), every, weighting, steps, generator, batch)


def halved(student, teacher_steps, student_steps, weighting, steps, generator, batch=256):
    """Through all stages."""
    for num_steps in halvings(teacher_steps, student_steps):
        teacher = without_conditions(student.with_network(copy.deepcopy(student.network)))

        def target_of(x_t, t, middle, s, teacher=teacher):
            return halving_target(teacher, x_t, t, middle, s, SCHEDULE)

        learn(student, target_of, halving_times(num_steps, SCHEDULE), weighting, steps, generator, batch)
    return without_conditions(student)


def one_step_student_of(prediction_type, weighting, generator):
    student = small_student(prediction_type)
    fitted_to_its_teacher(student, 8, weighting, 900, generator)
    return halved(student, 8, 1, weighting, 250, generator)


@pytest.mark.slow
def test_four_steps_of_a_student_are_nearly_as_good_as_256_of_its_teacher(generator):
    """Nearly: within 1.2 times the teacher's distance from the data, most of which is that of any 10,000 samples."""
    data, noise = draw_data(10_000, generator), torch.randn(10_000, 2, generator=generator)
    student = small_student("v_prediction", width=128, layers=3)
    fitted_to_its_teacher(student, 256, "truncated_snr", 4000, generator, batch=1024)
    four = halved(student, 256, 4, "truncated_snr", 600, generator, batch=1024)
    of_teacher, of_four_steps = (sliced_wasserstein(sample(exact_teacher, steps, noise), data) for steps in (256, 4))
    of_student = sliced_wasserstein(sample(four, 4, noise), data)
    assert of_student < 1.2 * of_teacher
    assert of_student < 0.2 * of_four_steps  # of the teacher


@pytest.mark.parametrize("weighting", ["truncated_snr", pytest.param("snr_plus_one", marks=pytest.mark.slow)])
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
