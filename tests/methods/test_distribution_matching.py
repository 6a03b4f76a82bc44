"""Distribution matching: its gradient is that of the KL in closed form, its losses are those of the papers, and it resumes."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from test_consistency_of_a_mixture import (
    CENTRES,
    SCHEDULE,
    STD,
    SmallNetwork,
    call_small_network,
    denoise_as_the_teacher,
    draw_data,
    one_step,
    posterior_mean,
)
from test_latent_alignment_of_a_mixture import shares
from tiny_runs import settings_of
from tiny_training import tiny_data, tiny_trainer
from torch import nn

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.rollout import few_step_rollout, rollout_times
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import Networks, full_networks, lora_config, lora_networks
from gendistill.losses.score_matching import DIVERGENCES, divergence_weights, forward_process, reverse_kl_gradient
from gendistill.methods.distribution_matching import DistributionMatching, DistributionMatchingConfig
from gendistill.methods.fake_score import FakeScore, FakeScoreConfig
from gendistill.methods.student_samples import numbered_steps
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import noisy_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import fresh_noise, solver_eta, student_scheduler, to_prediction

NOTHING, UNGUIDED = Conditioning(), Guidance(Conditioning(), GuidanceConfig(scale=1.0))


class Numbers:
    """The random numbers of a step, given in their order."""

    def __init__(self, *normals, t=0.5):
        self.normals, self.t = list(normals), t

    def of_step(self, count):
        return [0.0] * count

    def normal(self, shape):
        return self.normals.pop(0)

    def uniform(self, shape=()):
        return torch.tensor([self.t], dtype=torch.float64)


class Stream:
    """Random numbers of a batch from one generator, which is faster than one for each sample."""

    def __init__(self, count):
        self.count, self.generator = count, torch.Generator().manual_seed(0)

    def of_step(self, count):
        return torch.rand(count, generator=self.generator).tolist()

    def normal(self, shape):
        return torch.randn(self.count, *shape, generator=self.generator)

    def uniform(self, shape=()):
        return torch.rand(self.count, *shape, generator=self.generator)


class Affine(nn.Module):
    """A generator x_0 = A z + b of a Gaussian."""

    def __init__(self, width):
        super().__init__()
        self.config = {}
        self.A = nn.Parameter(torch.eye(width, dtype=torch.float64) * 0.7 + 0.1)
        self.b = nn.Parameter(torch.linspace(-0.3, 0.2, width, dtype=torch.float64))


def quadrature(nodes, width):
    """Points (N, width) and weights (N,) of a standard normal (Gauss and Hermite)."""
    x, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points = torch.tensor(list(product(x, repeat=width)))
    return points, torch.tensor(list(product(weights / weights.sum(), repeat=width))).prod(1)


def log_density(x_t, t, centres):
    """log p(x_t) of the mixture, up to a constant."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    squares = (x_t[:, None] - alpha * centres).square().sum(-1)
    return torch.logsumexp(-squares / (2 * (alpha**2 * STD**2 + sigma**2)), 1)


@pytest.mark.parametrize(("width", "nodes"), [(1, 40), (2, 14)])
def test_the_gradient_of_a_generator_is_that_of_the_reverse_kl_in_closed_form(width, nodes):
    centres, t = CENTRES[:, :width].double(), torch.tensor(499)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)

    def real_x0(network, x_t, time, conditioning):
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            score = torch.autograd.grad(log_density(x, t, centres).sum(), x)[0]
        return (x_t + sigma**2 * score) / alpha

    def fake_x0(network, x_t, time, conditioning):
        covariance = network.A @ network.A.T
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(width, dtype=torch.float64)
        return network.b + alpha * (x_t - alpha * network.b) @ torch.linalg.solve(marginal, covariance)

    generator = Affine(width)
    teacher = Denoiser(generator, SCHEDULE, "sample", real_x0)
    student = replace(teacher, call=lambda network, z, time, conditioning: z @ network.A.T + network.b)
    method = DistributionMatching(Networks(teacher, student, student, {}, {}), UNGUIDED, DistributionMatchingConfig(), [1])
    method.fake_score.denoiser = replace(teacher, call=fake_x0, network=method.fake_score.module.double())

    points, weights = quadrature(nodes, 2 * width)
    random = Numbers(points[:, :width], points[:, width:], t=0.4999)
    samples = method.sampler.generate(Batch(torch.zeros(len(points), width), NOTHING), random, learning=True)
    (loss, _), _ = method.student_loss(samples, random)
    gradient = torch.autograd.grad(loss, samples.x_s, retain_graph=True)[0] * samples.x_s.numel()
    x_t = SCHEDULE.add_noise(samples.x_s, points[:, width:], t.expand(len(points))).detach()
    normaliser = (samples.x_0 - real_x0(None, x_t, t, None)).abs().mean(1, keepdim=True)
    unnormalised = gradient * normaliser * alpha**2 / sigma**2  # alpha (s_fake - s_real)
    found = torch.autograd.grad((weights[:, None] * unnormalised.detach() * samples.x_s).sum(), [generator.A, generator.b])

    marginal = alpha**2 * generator.A @ generator.A.T + sigma**2 * torch.eye(width, dtype=torch.float64)
    normal, weights = quadrature(40, width)
    y = alpha * generator.b + normal @ torch.linalg.cholesky(marginal).T
    kl = -torch.logdet(marginal) / 2 - (weights * log_density(y, t, centres)).sum()
    for one, other in zip(found, torch.autograd.grad(kl, [generator.A, generator.b]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def of_small_networks(steps, denoising=0, prediction_type="sample", **settings):
    """The method with small trained networks, and with the closed form of the mixture as its teacher where it was learned."""
    torch.manual_seed(0)
    networks = full_networks(Denoiser(SmallNetwork(), SCHEDULE, prediction_type, call_small_network))
    if denoising:
        denoise_as_the_teacher(networks, denoising, torch.Generator().manual_seed(1))
    networks = full_networks(networks.average)
    method = DistributionMatching(networks, UNGUIDED, DistributionMatchingConfig(**settings), steps)
    if denoising:
        networks.teacher = Denoiser(None, SCHEDULE, "sample", posterior_mean)
    return method


def histogram(samples):
    return torch.histogramdd(samples, bins=[16, 16], range=[-2.0, 2.0, -2.0, 2.0]).hist.flatten()


def test_a_generator_of_one_step_finds_all_modes_of_a_mixture(generator):
    method, random = of_small_networks([1], 300, fake_score={"steps": 2}, ema_decay=0.98), Stream(256)
    optimizers = {
        name: torch.optim.Adam(parameters.values(), betas=(0.0, 0.99))
        for name, parameters in method.trained_parameters().items()
    }
    noise, blur = torch.randn(2, 20_000, 2, generator=generator)
    data = draw_data(400_000, generator)
    expected = histogram(data + 0.3 * torch.randn(data.shape, generator=generator)) + 1

    def kl():
        """KL(student | data) of both with noise of 0.3: a continuous map of one Gaussian has samples between the modes."""
        found = histogram(one_step(method.networks.average, noise) + 0.3 * blur) / len(noise)
        return -torch.special.entr(found).sum() - (found * (expected / expected.sum()).log()).sum()

    before = kl()
    for step in range(600):
        for update in method.updates(Batch(torch.zeros(256, 2), NOTHING), step, random):
            optimizer = optimizers[update.optimizers[0]]
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 600)
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
        method.after_step(step + 1)
    assert shares(one_step(method.networks.average, noise)).min() > 0.15
    assert kl() < 0.2 < 2 < before


F = {  # f of the divergence E_q f(p / q)
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "softened_reverse_kl": lambda r: (r + 1) * (1 / 2 + 1 / (2 * r)).log(),
    "squared_hellinger": lambda r: 1 - r.sqrt(),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_weight_of_a_divergence_is_r_squared_times_the_second_derivative_of_f(name):
    r = torch.linspace(0.05, 20, 50, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(F[name](r).sum(), r, create_graph=True)[0]
    expected = r**2 * torch.autograd.grad(first.sum(), r)[0]
    torch.testing.assert_close(DIVERGENCES[name](r), expected)
    weights = divergence_weights(r.detach().log(), name)
    torch.testing.assert_close(weights, (expected / expected.mean()).float())


def test_the_losses_are_those_of_the_papers_on_the_same_tensors():
    """Equation 7 of Yin et al. 2024 with the weight of equation 8, without its alpha; and the loss of the noise, equation 6."""
    method = of_small_networks([1], prediction_type="epsilon", fake_score={"steps": 1})
    with torch.no_grad():
        for parameter in method.fake_score.parameters.values():
            parameter.mul_(1.1)
    student, fake = (
        update.loss for update in method.updates(Batch(torch.zeros(4, 2), NOTHING), 0, PerSampleRandom(0, 0, 0, 4))
    )

    random, networks = PerSampleRandom(0, 0, 0, 4), method.networks
    z = random.normal((2,))
    x = networks.student(z, torch.full((4,), 999), NOTHING).x_0

    def noisy():
        t, noise = method.config.times.sample(-1, 999, random), random.normal((2,))
        alpha, sigma = SCHEDULE.alpha(t).float()[:, None], SCHEDULE.sigma(t).float()[:, None]
        return alpha * x.detach() + sigma * noise, t, noise, alpha, sigma

    x_t, t, _, alpha, sigma = noisy()
    scores = [
        -call_small_network(network, x_t, t, None) / sigma for network in (method.fake_score.network, networks.teacher.network)
    ]
    mu = (x_t + sigma**2 * scores[1]) / alpha
    weight = sigma**2 / alpha * x[0].numel() / (x - mu).abs().sum(1, keepdim=True)
    gradient = weight * (scores[0] - scores[1])
    parameters = list(networks.trained.values())
    expected = torch.autograd.grad((gradient.detach() * x).sum() / x.numel(), parameters)
    torch.testing.assert_close(torch.autograd.grad(student, parameters), expected)
    x_t, t, noise, *_ = noisy()
    torch.testing.assert_close(fake, (call_small_network(method.fake_score.network, x_t, t, None) - noise).square().mean())


@pytest.mark.parametrize("s", [SCHEDULE.clean, 249])
def test_a_denoiser_that_fits_the_target_has_the_score_of_the_diffused_samples(s, generator):
    """x_s = mean + std n is Gaussian, so that the best prediction of eps is linear in x_t: -sigma_t times the score of x_t."""
    mean, std, count, t = 0.4, 0.5, 400_000, torch.tensor(499)
    x_s, noise = mean + std * torch.randn(count, 1, generator=generator), torch.randn(count, 1, generator=generator)
    x_t, target, weight = forward_process(x_s, noise, torch.tensor([s]), t[None], SCHEDULE)
    alpha, sigma, a = SCHEDULE.alpha(t), SCHEDULE.sigma(t), SCHEDULE.alpha(t) / SCHEDULE.alpha(s)
    variance = a**2 * std**2 + sigma**2 - (a * SCHEDULE.sigma(s)) ** 2
    centred = (x_t - a * mean).double()
    slope = (centred * target.eps).mean() / centred.square().mean()
    assert float(slope) == pytest.approx(float(sigma / variance), rel=0.02)
    torch.testing.assert_close(alpha.float() * target.x_0 + sigma.float() * target.eps, x_t)
    assert float(weight.sqrt() * target.eps.std()) == pytest.approx(1, rel=0.01)
    if s == SCHEDULE.clean:
        torch.testing.assert_close((target.x_0, target.eps), (x_s, noise))


def test_the_steps_of_several_samplers_have_numbers_by_the_points_that_they_start_from():
    assert numbered_steps([2, 1], SCHEDULE) == {(2, 0): 0, (2, 1): 1, (1, 0): 0}
    assert len(set(numbered_steps([4, 2, 1], SCHEDULE).values())) == 5
    assert len(set(numbered_steps([4, 2, 1], SCHEDULE, segments=True).values())) == 7


@pytest.mark.parametrize("segments", [False, True])
def test_samples_are_from_the_steps_of_the_sampler_and_are_compared_at_the_timesteps_of_their_segment(segments):
    method = of_small_networks([1])
    method.sampler.steps, method.sampler.numbers = [4], {(4, k): k for k in range(4)}
    method.sampler.segments = segments
    times = [999, 749, 499, 249, SCHEDULE.clean]
    for step in range(12):
        random = PerSampleRandom(0, step, 0, 8)
        samples = method.sampler.generate(Batch(torch.zeros(8, 2), NOTHING), random, learning=True)
        k, noise = samples.step, PerSampleRandom(0, step, 0, 8).normal((2,))
        x_t, t = few_step_rollout(method.networks.student, noise, NOTHING, 4, k)
        torch.testing.assert_close(samples.x_0, method.networks.student(x_t, t, NOTHING).x_0)
        next_x = few_step_rollout(method.networks.student, noise, NOTHING, 4, k + 1)[0]
        torch.testing.assert_close(samples.x_s, next_x if segments else samples.x_0)
        assert samples.x_s.requires_grad
        _, t, _, _ = method.diffused(samples, random)
        assert samples.times == ((times[k + 1], times[k]) if segments else (SCHEDULE.clean, 999))
        assert (t > samples.times[0]).all()
        assert (t <= samples.times[1]).all()


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_are_within_their_range_and_have_the_distribution(distribution):
    times = DistributionMatchingConfig(times={"distribution": distribution, "mean": 1.0, "range": [0.2, 0.8]}).times
    t = times.sample(SCHEDULE.clean, 999, Stream(20_000))
    assert t.min() >= 199
    assert t.max() <= 800
    assert float(t.double().median()) == pytest.approx(500 if distribution == "uniform" else 199 + 600 * 0.731, rel=0.02)
    with pytest.raises(ValueError, match=r"times\.range is .*; expects two rising fractions"):
        load_config(None, {"distribution_matching.times.range": [0.5, 0.2]})


def test_a_sample_without_distance_from_its_teachers_prediction_has_a_finite_gradient():
    x = torch.zeros(2, 3)
    assert reverse_kl_gradient(x, x + 1, x).isfinite().all()


@pytest.fixture
def trainer(tiny_folder, tmp_path):
    """trainer(folder, max_steps): a fresh one whose student is updated in every second step."""

    def make(folder, max_steps):
        data, limits = tiny_data(tiny_folder, tmp_path / "cache"), {"checkpoint_every": 1, "log_every": 1}
        return tiny_trainer(tiny_folder, data, tmp_path / folder, matching=2, max_steps=max_steps, **limits)

    return make


def left_by(trainer):
    weights = trainer.run_folder / "checkpoints" / f"step-{trainer.state.step:08d}"
    return [(weights / f"{name}.safetensors").read_bytes() for name in ("weights", "optimizers")]


def test_a_run_that_ends_after_either_update_is_resumed_to_the_same_bits(trainer):
    straight = trainer("straight", 5)
    straight.train()
    for max_steps in (1, 2, 5):  # after an update of the fake score alone, after one of both
        resumed = trainer("resumed", max_steps)
        resumed.train(resume=True)
    assert left_by(resumed) == left_by(straight)


def test_the_average_follows_the_students_updates_alone():
    method = of_small_networks([1], fake_score={"steps": 2})
    networks, before = method.networks, {name: value.clone() for name, value in method.networks.averaged.items()}
    with torch.no_grad():
        for parameter in networks.trained.values():
            parameter.add_(1)
    method.after_step(1)
    assert all(torch.equal(value, before[name]) for name, value in networks.averaged.items())
    method.after_step(2)
    for name, value in networks.averaged.items():
        torch.testing.assert_close(value, before[name] + 1 - networks.decay_at(1))


@pytest.mark.parametrize("network", ["fake_score", "feature_discriminator", "student"])
@pytest.mark.parametrize("step", [0, 1])
def test_the_network_that_is_not_finite_is_named(trainer, network, step):
    broken = trainer("broken", 2)
    with torch.no_grad():
        next(iter(broken.method.trained_parameters()[network].values())).fill_(torch.nan)
    broken.state.step = step
    with pytest.raises(ValueError, match=f"step {step + 1}: the loss of the {network} is not finite"):
        broken.train()


def test_a_fake_score_that_falls_behind_ends_the_training():
    method, resumed = of_small_networks([1]), of_small_networks([1])
    logs = {"fake_score_error": 3.0}
    assert [method.stop_reason(logs) for _ in range(9)] == [None] * 9
    resumed.load_state_dict(method.state_dict())
    assert "the fake score falls behind" in resumed.stop_reason(logs)
    assert method.stop_reason({"fake_score_error": 1.0}) is None
    with pytest.raises(ValueError, match=r"fake_score\.steps 5: .* expects at most trainer\.max_steps \(3\)"):
        load_config(None, {"method": "distribution_matching", "trainer.max_steps": 3})


def test_a_student_of_another_prediction_type_than_its_teacher_is_trained_further(halved_run, tiny_folder, tmp_path):
    changes = {"method": "distribution_matching", "distribution_matching__fake_score__steps": 2, "steps": [2, 1]}
    changes |= {"start": str(halved_run / "student-2"), "trainer__max_steps": 2}
    result = distill(settings_of(tmp_path, tiny_folder, "run", guidance__mode="embedded", **changes))
    networks = result.method.networks
    assert (networks.teacher.prediction_type, networks.student.prediction_type) == ("epsilon", "v_prediction")
    assert result.exported.prediction_type == "v_prediction"
    assert "time_embedding.cond_proj.weight" in result.method.fake_score.parameters
    with pytest.raises(ValueError, match=r"start .*student-2: its guidance scale is an input; expects guidance\.mode=embedded"):
        distill(settings_of(tmp_path, tiny_folder, "baked", **changes))


@pytest.mark.parametrize("family", ["sd1", "sd3", "dit"])
def test_the_number_of_a_step_is_an_input_of_the_fake_score_alone(family_folder, family, generator):
    """A LoRA, whose base is that of all networks; and all weights of a DiT, each of whose blocks embeds t."""
    teacher = load_teacher(family_folder(family))
    lora, denoiser = teacher.family.lora, teacher.denoiser
    networks = lora_networks(denoiser, lora_config(teacher.family.lora_targets, 2)) if lora else full_networks(denoiser)
    fake = FakeScore(networks, FakeScoreConfig(), 3)
    conditions = teacher.encode_prompts(["0" if family == "dit" else "food"])
    inputs = torch.randn(1, *teacher.codec.latent_shape(teacher.size), generator=generator), torch.tensor([499]), conditions
    before = [network(*inputs).x_0 for network in (networks.student, networks.teacher)]
    torch.testing.assert_close(fake(*inputs, step=2).x_0, before[1])
    with torch.no_grad():
        fake.step_embedding.vectors[2].normal_(generator=generator)
    torch.testing.assert_close(fake(*inputs, step=0).x_0, before[1])
    assert not torch.allclose(fake(*inputs, step=2).x_0, before[1])
    for network, expected in zip((networks.student, networks.teacher), before, strict=True):
        torch.testing.assert_close(network(*inputs).x_0, expected)

    def gradients():
        parameters = list(fake.parameters.values())
        return torch.autograd.grad(fake(*inputs, step=2).x_0.square().mean(), parameters, allow_unused=True)

    expected = [gradient for gradient in gradients() if gradient is not None]
    fake.module.enable_gradient_checkpointing()
    for found, other in zip([gradient for gradient in gradients() if gradient is not None], expected, strict=True):
        torch.testing.assert_close(found, other)


@pytest.mark.parametrize(("solver", "tolerance"), [("ddim", 1e-5), ("tcd", 1e-5), ("lcm", 2e-3)])  # LCM's c_skip is not 0
def test_the_steps_of_the_rollout_are_those_of_the_scheduler_that_a_student_is_exported_with(solver, tolerance, generator):
    config = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config
    scheduler = student_scheduler(solver, config, "sample", 40)
    scheduler.set_timesteps(4)
    times = rollout_times(4, SCHEDULE)
    assert scheduler.timesteps.tolist() == times[:-1]
    options = {"eta": solver_eta(solver)} if solver == "tcd" else {}
    x_t, x_0 = torch.randn(2, 3, 4, generator=generator)
    for t, s in pairwise(times):
        noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(t))
        found = scheduler.step(x_0, t, x_t, generator=torch.Generator().manual_seed(t), **options).prev_sample
        prediction = to_prediction(x_0, x_t, torch.full((3,), t), "sample", SCHEDULE)
        x_t = noisy_step(prediction, noise, torch.full((3,), s), SCHEDULE, fresh_noise(solver))
        if s != SCHEDULE.clean or solver != "tcd":  # whose last step ends at timestep 0
            torch.testing.assert_close(found, x_t, atol=tolerance, rtol=0)
    torch.testing.assert_close(x_t, x_0)
