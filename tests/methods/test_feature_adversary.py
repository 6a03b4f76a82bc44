"""Adversarial distillation: its losses are those of the papers, and a generator finds all modes of a mixture."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_consistency_of_a_mixture import (
    SCHEDULE,
    SmallNetwork,
    call_small_network,
    denoise_as_the_teacher,
    draw_data,
    one_step,
    sliced_wasserstein,
)
from test_distribution_matching import NOTHING, UNGUIDED, Stream, of_small_networks
from test_latent_alignment_of_a_mixture import shares
from torch import nn

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.feature_heads import FeatureHeads, blocks_at
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import full_networks, lora_config, lora_networks
from gendistill.losses.adversarial import approximate_r1_penalty, r1_penalty
from gendistill.losses.score_matching import DIVERGENCES
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.methods.fake_score import FakeScore, FakeScoreConfig
from gendistill.methods.feature_adversary import AdversarialConfig, AdversarialDistillation, FeatureAdversary, adversary_of
from gendistill.methods.student_samples import Samples, StudentSampler
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom

SETTINGS = {"adversarial.depths": [0.5, 1.0]}


def random_of_step():
    return PerSampleRandom(0, 0, 0, 2)


@pytest.fixture
def adversary(family_folder, generator):
    """adversary(features, lora, **settings): the discriminator of a tiny pipeline, two samples of a student, and real ones."""

    def make(features, lora=False, family="sd1", **settings):
        torch.manual_seed(0)
        teacher = load_teacher(family_folder(family))
        networks = (
            lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 2))
            if lora
            else full_networks(teacher.denoiser)
        )
        given = {"method": "distribution_matching", "adversarial.features": features, **SETTINGS}
        config = load_config(None, given | {f"adversarial.{name}": value for name, value in settings.items()})
        raw = replace(teacher.denoiser, network=teacher.network)
        context = DenoiserContext(config, teacher.family, raw, teacher.unconditional())
        fake_score = FakeScore(networks, FakeScoreConfig(), 2)
        found = adversary_of(context, networks, fake_score)
        shape = teacher.codec.latent_shape(teacher.size)
        x_0, real = torch.randn(2, 2, *shape, generator=generator)
        s = torch.full((2,), SCHEDULE.clean)
        conditions = teacher.encode_prompts(["food", "animals"])
        samples = Samples(x_0.requires_grad_(), s, x_0, (SCHEDULE.clean, 999), 1, conditions, 1.0)
        return found, samples, real, networks, fake_score

    return make


@pytest.mark.parametrize(("features", "lora"), [("teacher", True), ("fake_score", False)])
def test_the_losses_are_those_of_the_papers_on_the_same_tensors(adversary, features, lora):
    """The hinge loss of Sauer et al. 2024 at equal noise levels, with the finite differences of Lin et al. 2025."""
    found, samples, real, networks, fake_score = adversary(features, lora, r1=3.0)
    loss, _ = found.loss(samples, real, random_of_step())

    random, schedule = random_of_step(), networks.teacher.schedule
    t = found.config.times.sample(schedule.clean, 999, random)
    x_t = [schedule.add_noise(x, random.normal(x.shape[1:]), t) for x in (samples.x_0.detach(), real)]
    x_t.append(x_t[1] + 0.01 * random.normal(real.shape[1:]))
    generated, of_real, moved = (found.logits(x, t, samples.conditioning, 1) for x in x_t)
    expected = [
        F.relu(1 - one).mean() + F.relu(1 + other).mean() + 3.0 * ((near - one) / 0.01).square().mean() / 2
        for one, other, near in zip(of_real, generated, moved, strict=True)
    ]
    assert len(expected) == 2
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-3, atol=1e-4)
    trained = torch.autograd.grad(loss, list(found.parameters.values()), retain_graph=True)
    assert all(gradient.any() for gradient in trained)
    scores = torch.autograd.grad(loss, list(fake_score.parameters.values()), allow_unused=True)
    assert any(gradient is not None for gradient in scores) is (features == "fake_score")


@pytest.mark.parametrize(
    ("features", "lora", "recomputed"), [("teacher", True, True), ("fake_score", False, True), ("fake_score", True, True)]
)
def test_the_student_alone_gets_the_gradient_of_its_loss(adversary, features, lora, recomputed):
    found, samples, _, networks, fake_score = adversary(features, lora, loss="logistic")
    random = random_of_step()
    t = found.config.times.sample(SCHEDULE.clean, 999, random)
    x_t = networks.teacher.schedule.add_noise(samples.x_0, random.normal(samples.x_0.shape[1:]), t)
    logits = found.logits(x_t, t, samples.conditioning, samples.step)
    expected = torch.stack([F.softplus(-head).mean() for head in logits]).mean()
    gradient = torch.autograd.grad(expected, samples.x_0)[0]
    if recomputed:
        fake_score.module.enable_gradient_checkpointing()
    loss = found.student_loss(samples, random_of_step())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(samples.x_0.grad, gradient, rtol=1e-4, atol=1e-7)
    critics = [*found.parameters.values(), *fake_score.parameters.values()]
    assert all(parameter.grad is None for parameter in critics)


class TokenNetwork(nn.Module):
    """A denoiser of points whose blocks return tokens, (B, 1, 96)."""

    def __init__(self):
        super().__init__()
        self.config = {"num_layers": 2}
        self.embed, self.output = nn.Linear(3, 96), nn.Linear(96, 2)
        self.transformer_blocks = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(96, 96)) for _ in range(2))

    def forward(self, x_t, log_snr):
        x = self.embed(torch.cat([x_t, log_snr[:, None] / 4], dim=1))[:, None]
        for block in self.transformer_blocks:
            x = x + block(x)
        return self.output(x[:, 0])


def of_a_mixture(**settings):
    """The method of a generator of one step, with the features of a denoiser that has learned the mixture."""
    torch.manual_seed(0)
    learned = full_networks(Denoiser(TokenNetwork(), SCHEDULE, "sample", call_small_network))
    denoise_as_the_teacher(learned, 200, torch.Generator().manual_seed(1))
    networks = full_networks(Denoiser(SmallNetwork(), SCHEDULE, "sample", call_small_network))
    networks.teacher = learned.average
    names = blocks_at(networks.teacher.network, [0.5, 1.0])
    heads = FeatureHeads(dict.fromkeys(names, (96, 1, 1)))
    config = AdversarialConfig(loss="logistic", ema_decay=0.98, times={"range": [0.0, 0.5]}, **settings)
    adversary = FeatureAdversary(heads, networks.teacher, config)
    return AdversarialDistillation(networks, StudentSampler(networks, UNGUIDED, [1]), adversary)


def test_a_generator_of_one_step_finds_all_modes_of_real_data(generator):
    method, random = of_a_mixture(r1=0.01), Stream(128)
    optimizers = {
        name: torch.optim.Adam(parameters.values(), 2e-3, betas=(0.0, 0.99))
        for name, parameters in method.trained_parameters().items()
    }
    noise = torch.randn(10_000, 2, generator=generator)
    before = sliced_wasserstein(one_step(method.networks.average, noise), draw_data(10_000, generator))
    for step in range(400):
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            group["lr"] = 2e-3 * (1 - step / 400)
        for update in method.updates(Batch(draw_data(128, generator), NOTHING), step, random):
            optimizer = optimizers[update.optimizers[0]]
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
        method.after_step(step + 1)
    found = one_step(method.networks.average, noise)
    assert shares(found).min() > 0.06
    assert sliced_wasserstein(found, draw_data(10_000, generator)) < 0.2 < before


def test_a_saturated_discriminator_ends_training_after_30_logs_which_a_resumed_run_continues():
    before, after = of_a_mixture(max_accuracy=0.9), of_a_mixture(max_accuracy=0.9)
    assert all(before.stop_reason(logs) is None for logs in [{"feature_discriminator_accuracy": 0.95}] * 29)
    after.load_state_dict(before.state_dict())
    assert "the discriminator is saturated, its accuracy is 95.0% or more in 30 logged steps" in after.stop_reason(
        {"feature_discriminator_accuracy": 0.97}
    )
    assert after.stop_reason({"feature_discriminator_accuracy": 0.5}) is None

    matching = of_small_networks([1])
    matching.adversary = before.adversary
    assert "the discriminator is saturated" in matching.stop_reason({"feature_discriminator_accuracy": 1.0})


def test_a_divergence_weights_the_gradient_by_the_discriminators_density_ratio(generator):
    ratios = torch.tensor([-1.0, 0.0, 2.0, 1.0])
    method = of_small_networks([1], divergence="jensen_shannon")
    with torch.no_grad():
        for parameter in method.fake_score.parameters.values():
            parameter.mul_(1.1)

    class Known(FeatureAdversary):
        def __init__(self):
            pass

        def log_density_ratio(self, x_t, t, samples):
            return ratios

    gradients = []
    for adversary in (None, Known()):
        random = PerSampleRandom(0, 0, 0, 4)
        samples = method.sampler.generate(Batch(torch.zeros(4, 2), NOTHING), random, learning=True)
        (loss, _), _ = method.student_loss(samples, random, adversary)
        gradients.append(torch.autograd.grad(loss, samples.x_s)[0])
    h = DIVERGENCES["jensen_shannon"](ratios.exp())
    torch.testing.assert_close(gradients[1], gradients[0] * (h / h.mean())[:, None])


def test_finite_differences_approach_the_r1_penalty(generator):
    x, direction = torch.randn(4, 2, 3, 3, generator=generator), torch.randn(2, 3, 3, generator=generator)

    def discriminator(images):
        return (images * direction).sum((1, 2, 3)).tanh()

    noise = torch.randn(20_000, *x.shape, generator=generator)
    moved = discriminator((x + 0.01 * noise).flatten(0, 1)).view(20_000, 4)
    found = approximate_r1_penalty(discriminator(x).expand(20_000, 4), moved, 0.01)
    torch.testing.assert_close(found, r1_penalty(discriminator, x), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"adversarial.features": "fake_score"}, r"adversarial\.features 'fake_score': .*; expects 'teacher', or --method"),
        ({"adversarial.depths": [0.5, 1.5]}, r"adversarial\.depths is .*; expects fractions above 0"),
        (
            {"method": "distribution_matching", "distribution_matching.divergence": "forward_kl", "adversarial.weight": 0.1},
            r"divergence forward_kl: .*; expects adversarial\.weight above 0 and adversarial\.loss=logistic",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config(None, {"method": "adversarial", **settings})
