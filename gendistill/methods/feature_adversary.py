"""Adversarial distillation (Sauer et al. 2024, LADD): discriminator heads on the features of a denoiser.

A frozen teacher, or the fake score of distribution matching (Yin et al. 2024b, DMD2), computes features of noisy samples; small
heads on several of its blocks classify samples as real or generated. Real samples are the training data: images, or what
the teacher generates from prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.diffusion.blocks import recorded_maps, shapes_of_blocks
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.feature_heads import FeatureHeads, blocks_at
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.latent_discriminator import condition_of, number_of_classes
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.adversarial import (
    approximate_r1_penalty,
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
)
from gendistill.methods.alignment import needs_trajectories
from gendistill.methods.auxiliary_losses import auxiliary_losses
from gendistill.methods.compression import inputs_of_default_size
from gendistill.methods.denoiser_method import AuxiliaryLoss, Critic, DenoiserContext, DenoiserMethod
from gendistill.methods.fake_score import FakeScore
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.methods.student_samples import Samples, StudentSampler, TimesConfig
from gendistill.networks.pruning.transformer_pruning import on_meta
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight
from gendistill.settings.section import Section
from gendistill.training.method import OptimizerSettings, Update

SATURATED_LOGS = 30  # logged steps in a row of high accuracy for a saturated discriminator
R1_DEVIATION = 0.01  # standard deviation of the noise of the approximate R1 penalty (Lin et al. 2025)
SCALE = 1024.0  # of the loss while its gradient at the samples is computed, which float16 would round to 0


class AdversarialConfig(Section):
    """Adversarial distillation (`--method adversarial`), or a discriminator in addition to distribution matching."""

    weight: Weight = Field(
        0.0,
        description="Weight of the adversarial loss in addition to distribution matching; 0 is off, and a schedule that starts "
        "with 0 makes a second stage",
        json_schema_extra=about(paper=papers.DMD2, at="section 4.3"),
    )
    features: Literal["teacher", "fake_score"] = Field(
        "teacher",
        description="Network with the features: the frozen teacher, or the fake score, which is trained with the heads",
        json_schema_extra=about(paper=papers.LADD),
    )
    depths: list[float] = Field(
        [0.25, 0.5, 0.75, 1.0],
        description="Blocks of that network with heads, as fractions of its depth",
        json_schema_extra=about(paper=papers.LADD),
    )
    times: TimesConfig = Field(
        TimesConfig(distribution="logit_normal", mean=1.0),
        description="Timesteps of the noisy samples that the discriminator gets",
        json_schema_extra=about(paper=papers.LADD),
    )
    loss: Literal["hinge", "logistic"] = Field(
        "hinge",
        description="Adversarial loss; the logits of logistic estimate the logarithm of the density ratio",
        json_schema_extra=about(paper=papers.HINGE),
    )
    r1: float = Field(
        0.0,
        ge=0,
        description="Weight of the R1 penalty on real samples, in its form of finite differences; 0 is off",
        json_schema_extra=about(paper=papers.APT),
    )
    discriminator_weight: float = Field(
        0.01,
        gt=0,
        description="Weight of the discriminator's loss next to the fake score's own loss, where it has the features",
        json_schema_extra=about(paper=papers.DMD2, at="section 4.3"),
    )
    learning_rate_factor: float = Field(
        10.0,
        gt=0,
        description="Ratio of the learning rate of the heads to the student's",
        json_schema_extra=about(paper=papers.TTUR),
    )
    max_accuracy: float = Field(
        0.995, gt=0, le=1, description="Accuracy of the discriminator above which training ends if it lasts; 1 never ends it"
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay per step of the student's moving average with --method adversarial"
    )

    @field_validator("depths")
    @classmethod
    def _are_fractions(cls, depths: list[float]) -> list[float]:
        if not depths or not all(0 < depth <= 1 for depth in depths):
            raise ValueError("fractions above 0, at most 1, such as [0.25, 0.5, 0.75, 1.0]")
        return depths


class FeatureAdversary:
    """The discriminator: heads on the features of the teacher, or of the fake score. A `Critic` to the trainer.

    Args:
        heads: the heads, with random weights.
        fake_score: the fake score where the features are its own; None for those of the teacher.
    """

    name = "feature_discriminator"

    def __init__(
        self, heads: FeatureHeads, teacher: Denoiser, config: AdversarialConfig, fake_score: FakeScore | None = None
    ) -> None:
        self.module: FeatureHeads = heads
        self.network: nn.Module = heads
        self.teacher, self.config, self.fake_score = teacher, config, fake_score
        self.parameters = dict(heads.named_parameters())
        self.settings = OptimizerSettings(learning_rate_factor=config.learning_rate_factor, betas=(0.0, 0.99))
        self.accuracies: list[float] = []  # in the latest logged steps

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """The discriminator is saturated, so that its gradients mean nothing."""
        if (accuracy := logs.get(f"{self.name}_accuracy")) is not None:
            self.accuracies = [*self.accuracies, accuracy][-SATURATED_LOGS:]
        if len(self.accuracies) < SATURATED_LOGS or min(self.accuracies) <= self.config.max_accuracy:
            return None
        return (
            f"the discriminator is saturated, its accuracy is {min(self.accuracies):.1%} or more in {SATURATED_LOGS} logged "
            f"steps (adversarial.max_accuracy {self.config.max_accuracy:g}); a smaller adversarial.learning_rate_factor or "
            "adversarial.r1=0.1 helps"
        )

    def logits(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, step: int, *, learning: bool = False) -> list[Tensor]:
        """Logits (B, 1, h, w) of each head for x_t (B, ...), t (B,).

        Args:
            step: the number of the student's step.
            learning: whether the discriminator is trained, through its networks as they are wrapped.
        """
        fake_score, heads = self.fake_score, self.network if learning else self.module
        denoiser = self.teacher if fake_score is None else fake_score.of_step(step)
        if fake_score is not None and not learning:
            denoiser = denoiser.with_network(fake_score.module)
        with recorded_maps(denoiser.network, self.module.names) as maps:
            denoiser(x_t, t, conditioning.with_guidance(None) if fake_score is None else conditioning)
        return [logits.float() for logits in heads(maps, condition_of(conditioning))]

    def loss(self, samples: Samples, real: Tensor, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on real samples (B, ...) of the same conditions, a scalar, and values for the log."""
        x_t, t = self._noisy(samples.x_0.detach(), random)
        real_x_t, _ = self._noisy(real, random, t)
        groups = [real_x_t, x_t]
        if self.config.r1:
            moved = to_device(random.normal(real.shape[1:]), real.device)
            groups.append(real_x_t + R1_DEVIATION * moved)
        count, conditioning = len(groups), Conditioning.cat([samples.conditioning] * len(groups))
        logits = self.logits(torch.cat(groups), t.repeat(count), conditioning, samples.step, learning=True)
        parts = [head.chunk(count) for head in logits]
        loss = torch.stack([discriminator_loss(part[0], part[1], self.config.loss) for part in parts]).mean()
        logs = {
            f"{self.name}_loss": loss.detach(),
            f"{self.name}_accuracy": torch.stack([discriminator_accuracy(part[0], part[1]) for part in parts]).mean().detach(),
        }
        if self.config.r1:
            penalties = [approximate_r1_penalty(part[0], part[2], R1_DEVIATION) for part in parts]
            loss = loss + self.config.r1 * torch.stack(penalties).mean()
        return loss, logs

    def student_loss(self, samples: Samples, random: PerSampleRandom) -> Tensor:
        """The student's adversarial loss, a scalar, with the gradient at its samples alone: the discriminator gets none."""
        x_0 = samples.x_0.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(*self._noisy(x_0, random), samples.conditioning, samples.step)
            loss = torch.stack([generator_loss(head, self.config.loss) for head in logits]).mean()
            (loss * SCALE).backward(inputs=[x_0])
        assert x_0.grad is not None
        return loss.detach() + (x_0.grad / SCALE * (samples.x_0 - x_0.detach())).sum()

    @torch.no_grad()
    def log_density_ratio(self, x_t: Tensor, t: Tensor, samples: Samples) -> Tensor:
        """log p / q (B,) of noisy samples, p the data and q the student, by the logistic loss: the mean of all heads."""
        logits = self.logits(x_t, t, samples.conditioning, samples.step)
        return torch.stack([head.flatten(1).mean(1) for head in logits]).mean(0)

    def _noisy(self, x_0: Tensor, random: PerSampleRandom, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t (B, ...) and t (B,) from x_0 (B, ...) at timesteps of `times`, or at t."""
        schedule = self.teacher.schedule
        if t is None:
            t = to_device(self.config.times.sample(schedule.clean, schedule.num_train_timesteps - 1, random), x_0.device)
        return schedule.add_noise(x_0, to_device(random.normal(x_0.shape[1:]), x_0.device), t), t


class AdversarialDistillation(DenoiserMethod):
    """The student and the discriminator, in turns.

    Args:
        sampler: generates the student's samples.
    """

    name = "adversarial"

    def __init__(
        self, networks: Networks, sampler: StudentSampler, adversary: FeatureAdversary, auxiliary: Sequence[AuxiliaryLoss] = ()
    ) -> None:
        self.networks, self.sampler, self.adversary, self.auxiliary = networks, sampler, adversary, auxiliary
        networks.decay = adversary.config.ema_decay

    @property
    def critics(self) -> list[Critic]:
        return [self.adversary, *super().critics]

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        samples = self.sampler.generate(batch, random, learning=True)
        loss, logs = self.adversary.loss(samples, batch.latents, random)
        yield Update(loss, (self.adversary.name,), logs, {"student": samples.x_0.mean()})
        own: tuple[Tensor, dict[str, Tensor]] = self.adversary.student_loss(samples, random), {}
        yield from self.student_updates(own, batch, step, random)

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        return self.adversary.stop_reason(logs)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": self.adversary.accuracies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adversary.accuracies = state["accuracies"]


def adversary_of(context: DenoiserContext, networks: Networks, fake_score: FakeScore | None = None) -> FeatureAdversary:
    """The discriminator by the settings `adversarial`, with random weights.

    Args:
        fake_score: the fake score, whose features it has by `features`.
    """
    settings: AdversarialConfig = context.config.adversarial
    family, network = context.family, context.teacher.network
    shapes = shapes_of_blocks(on_meta(type(network), network.config), inputs_of_default_size(family, network.config))
    names = blocks_at(network, settings.depths)
    example = condition_of(family.example_conditioning(network.config, 1, torch.float32))
    heads = FeatureHeads({name: shapes[name] for name in names}, example, number_of_classes(network.config))
    heads = heads.to(next(network.parameters()).device)
    return FeatureAdversary(heads, networks.teacher, settings, fake_score if settings.features == "fake_score" else None)


class AdversarialRecipe(Recipe):
    """One stage; the student is trained, validated and exported with one solver, the first of `solvers`."""

    name = section = "adversarial"
    Config = AdversarialConfig
    summary = "Discriminator heads on the teacher's features compare the student's samples with real images"
    supports = Supports(auxiliary_losses=True, feature_matching=True, adversary=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        if config.adversarial.features == "fake_score":
            raise ValueError(
                "adversarial.features 'fake_score': --method adversarial trains no fake score; expects 'teacher', or --method "
                "distribution_matching with adversarial.weight above 0"
            )

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, networks, solvers = context.config, context.networks(), context.solvers[:1]
        sampler = StudentSampler(networks, Guidance(context.unconditional, config.guidance), config.steps, solvers[0])
        auxiliary = auxiliary_losses(context, networks, config.steps)
        method = AdversarialDistillation(networks, sampler, adversary_of(context, networks), auxiliary)
        yield Stage(method, config.trainer, steps=config.steps, solvers=solvers)
