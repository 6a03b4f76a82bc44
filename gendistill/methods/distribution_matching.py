"""Distribution matching distillation (Yin et al. 2024, DMD; 2024b, DMD2).

The gradient of KL(student | data) with respect to a sample is the difference of two scores. The teacher knows that of the data;
the fake score, a second denoiser, is trained to know that of the student's own samples. No sample is compared with another one:
the student need not follow the teacher's trajectories, and no images are needed.

The samples of a student of several steps are those of its own sampler, from noise, as after training (backward simulation,
Yin et al. 2024b, section 4.5). A sample is the prediction of x_0 in one of the steps; or, with `segments`, the point x_s at
which the step arrives, which is compared at the timesteps of that step (Luo et al. 2025, TDM).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.score_matching import (
    divergence_weights,
    forward_process,
    loss_with_gradient,
    reverse_kl_gradient,
)
from gendistill.methods.alignment import needs_trajectories
from gendistill.methods.auxiliary_losses import auxiliary_losses
from gendistill.methods.denoiser_method import AuxiliaryLoss, Critic, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.fake_score import FakeScore, FakeScoreConfig
from gendistill.methods.feature_adversary import FeatureAdversary, adversary_of
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.methods.student_samples import Samples, StudentSampler, TimesConfig
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.schedulers import Prediction, expand_to
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Update

BEHIND, LOGS_BEHIND = 2.0, 10  # ratio of the fake score's error to the teacher's; logged steps in a row in which it is above


class DistributionMatchingConfig(Section):
    """Distribution matching distillation (`--method distribution_matching`)."""

    fake_score: FakeScoreConfig = FakeScoreConfig()
    times: TimesConfig = TimesConfig()
    segments: bool = Field(
        False,
        description="Match the points at which the student's steps arrive, each at the timesteps of its step, in place of x_0 "
        "at all timesteps",
        json_schema_extra=about(paper=papers.TDM),
    )
    divergence: Literal[
        "reverse_kl", "forward_kl", "jeffreys", "jensen_shannon", "softened_reverse_kl", "squared_hellinger"
    ] = Field(
        "reverse_kl",
        description="Divergence that the student minimises; all but reverse_kl weight the samples by a discriminator",
        json_schema_extra=about(paper=papers.F_DISTILL, at="table 1"),
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay per update of the student's moving average, which is exported as the student"
    )


class DistributionMatching(DenoiserMethod):
    """The student and its fake score, in turns.

    Attributes:
        adversary: a discriminator of the student's samples and real ones; None without.

    Args:
        steps: step counts of the student's samplers.
        solver: the solver of these samplers, `ddim`, `tcd` or `lcm`.
    """

    name = "distribution_matching"

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: DistributionMatchingConfig,
        steps: Sequence[int],
        solver: str = "ddim",
        auxiliary: Sequence[AuxiliaryLoss] = (),
    ) -> None:
        self.networks, self.guidance, self.config, self.auxiliary = networks, guidance, config, auxiliary
        networks.decay = config.ema_decay
        self.sampler = StudentSampler(networks, guidance, steps, solver, segments=config.segments)
        self.fake_score = FakeScore(networks, config.fake_score, max(self.sampler.numbers.values()) + 1)
        self.adversary: FeatureAdversary | None = None
        self.logs_behind = 0

    @property
    def critics(self) -> list[Critic]:
        return [self.fake_score, *([] if self.adversary is None else [self.adversary]), *super().critics]

    @property
    def shards(self) -> bool:
        return not self.auxiliary and self.adversary is None

    @property
    def cycle(self) -> int:
        return self.config.fake_score.steps

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        trains_student = (step + 1) % self.cycle == 0
        samples = self.sampler.generate(batch, random, learning=trains_student)
        weight = 0.0 if self.adversary is None else weight_at(self.adversary.config.weight, step)
        adversary = self.adversary if weight else None
        if trains_student:
            (value, logs), watch = self.student_loss(samples, random, adversary)
            if adversary is not None:
                logs["adversarial"] = watch[adversary.name] = adversary.student_loss(samples, random)
                value = value + weight * logs["adversarial"]
            yield from self.student_updates((value, detached(logs)), batch, step, random, watch)
        loss, trained = self.fake_score_loss(samples, random), [self.fake_score.name]
        logs, watch = {"fake_score_loss": loss}, {"student": samples.x_0.mean(), self.fake_score.name: loss}
        if adversary is not None:
            watch[adversary.name], found = adversary.loss(samples, batch.latents, random)
            loss = loss + adversary.config.discriminator_weight * watch[adversary.name]
            logs, trained = logs | found, [*trained, adversary.name]
        yield Update(loss, tuple(trained), detached(logs), watch)

    def diffused(self, samples: Samples, random: PerSampleRandom) -> tuple[Tensor, Tensor, Prediction, Tensor]:
        """x_t and t of the forward process from detached samples, and the target and weight of a denoiser of these."""
        x_s = samples.x_s.detach()
        t = to_device(self.config.times.sample(*samples.times, random), x_s.device)
        noise = to_device(random.normal(x_s.shape[1:]), x_s.device)
        x_t, target, weight = forward_process(x_s, noise, samples.s, t, self.networks.teacher.schedule)
        return x_t, t, target, weight

    def student_loss(
        self, samples: Samples, random: PerSampleRandom, adversary: FeatureAdversary | None = None
    ) -> tuple[LossAndLogs, dict[str, Tensor]]:
        """A scalar with the gradient of the reverse KL, values for the log, and the outputs that it depends on.

        The teacher alone is guided: the fake score has learned from the student whatever guidance that has.
        """
        teacher, conditioning = self.networks.teacher, samples.conditioning
        with torch.no_grad():
            x_t, t, target, weight = self.diffused(samples, random)
            real = self.guidance.predict(teacher, x_t, t, conditioning, samples.scale)
            fake = self.fake_score(x_t, t, conditioning, samples.step)
            gradient = reverse_kl_gradient(samples.x_0, fake.x_0, real.x_0)
            if adversary is not None and self.config.divergence != "reverse_kl":
                ratio = adversary.log_density_ratio(x_t, t, samples)
                gradient = gradient * expand_to(divergence_weights(ratio, self.config.divergence), gradient)
            error, teacher_error = (denoising_loss(teacher, known, target, t, weight) for known in (fake, real))
            logs = {"fake_score_error": error / teacher_error, "teacher_distance": (samples.x_0 - real.x_0).abs().mean()}
        watch = {"student": samples.x_0.mean(), self.fake_score.name: fake.x_0.mean()}
        return (loss_with_gradient(samples.x_s, gradient), logs), watch

    def fake_score_loss(self, samples: Samples, random: PerSampleRandom) -> Tensor:
        """The denoising loss of the student's samples, a scalar."""
        x_t, t, target, weight = self.diffused(samples, random)
        prediction = self.fake_score(x_t, t, samples.conditioning, samples.step)
        return denoising_loss(self.fake_score.denoiser, prediction, target, t, weight)

    def after_step(self, step: int, skipped: Collection[str] = ()) -> None:
        """The moving average follows the updates of the student, of which there is one in a cycle."""
        if step % self.cycle == 0:
            super().after_step(step // self.cycle, skipped)

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """The fake score no longer knows the student's samples, so that its gradients mean nothing; or the discriminator's."""
        if "fake_score_error" in logs:
            self.logs_behind = self.logs_behind + 1 if logs["fake_score_error"] > BEHIND else 0
        if self.logs_behind < LOGS_BEHIND:
            return None if self.adversary is None else self.adversary.stop_reason(logs)
        return (
            f"the fake score falls behind, its error on the student's samples is more than {BEHIND:g} times the teacher's in "
            f"{LOGS_BEHIND} logged steps; a smaller trainer.learning_rate or more distribution_matching.fake_score.steps helps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"logs_behind": self.logs_behind, "accuracies": [] if self.adversary is None else self.adversary.accuracies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.logs_behind = state["logs_behind"]
        if self.adversary is not None:
            self.adversary.accuracies = state["accuracies"]


def detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values without gradients, for the log."""
    return {name: value.detach() for name, value in values.items()}


def denoising_loss(denoiser: Denoiser, prediction: Prediction, target: Prediction, t: Tensor, weight: Tensor) -> Tensor:
    """The squared error in the denoiser's own prediction type, with a weight (B,) for each sample: a scalar."""
    error = denoiser.output_of(prediction, t) - denoiser.output_of(target, t)
    return (expand_to(weight, error) * error.square()).mean()


class DistributionMatchingRecipe(Recipe):
    """One stage; the student is trained, validated and exported with one solver, the first of `solvers`."""

    name = section = "distribution_matching"
    Config = DistributionMatchingConfig
    summary = "Matches the distribution of the student's samples by two scores, from prompts alone: no image is copied"
    supports = Supports(auxiliary_losses=True, feature_matching=True, adversary=True, added_loras=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: DistributionMatchingConfig = config.distribution_matching
        adversarial = config.adversarial
        if settings.divergence != "reverse_kl" and (adversarial.weight == 0 or adversarial.loss != "logistic"):
            raise ValueError(
                f"distribution_matching.divergence {settings.divergence}: its weights are read from a discriminator with the "
                "logistic loss; expects adversarial.weight above 0 and adversarial.loss=logistic"
            )
        if settings.fake_score.steps > config.trainer.max_steps:
            raise ValueError(
                f"distribution_matching.fake_score.steps {settings.fake_score.steps}: the student is never updated; expects "
                f"at most trainer.max_steps ({config.trainer.max_steps})"
            )

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, networks, solvers = context.config, context.networks(), context.solvers[:1]
        auxiliary = auxiliary_losses(context, networks, config.steps)
        guidance, settings = Guidance(context.unconditional, config.guidance), config.distribution_matching
        method = DistributionMatching(networks, guidance, settings, config.steps, solvers[0], auxiliary)
        if config.adversarial.weight != 0:
            method.adversary = adversary_of(context, networks, method.fake_score)
        yield Stage(method, config.trainer, steps=config.steps, solvers=solvers)
