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
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.rollout import few_step_rollout, rollout_times
from gendistill.diffusion.step_embedding import StepEmbedding
from gendistill.diffusion.trained_networks import Networks, another_network
from gendistill.losses.score_matching import forward_process, loss_with_gradient, reverse_kl_gradient
from gendistill.methods.alignment import auxiliary_alignment, needs_trajectories
from gendistill.methods.denoiser_method import AuxiliaryLoss, Critic, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import noisy_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, fresh_noise
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.method import OptimizerSettings, Update

BEHIND, LOGS_BEHIND = 2.0, 10  # ratio of the fake score's error to the teacher's; logged steps in a row in which it is above


class FakeScoreConfig(Section):
    """The fake score, a denoiser that is trained on the student's samples."""

    steps: int = Field(
        5,
        ge=1,
        description="Updates of the fake score for each update of the student, which is in the last of so many steps",
        json_schema_extra=about("steps", papers.DMD2, "section 4.2"),
    )
    learning_rate_factor: float = Field(
        1.0,
        gt=0,
        description="Ratio of the fake score's learning rate to the student's",
        json_schema_extra=about(paper=papers.TTUR),
    )


class TimesConfig(Section):
    """The timesteps at which the scores are compared, and at which the fake score is trained."""

    distribution: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="Distribution of the timesteps: uniform, or the logistic function of a normal variable",
        json_schema_extra=about(paper=papers.SD3, at="section 3.1"),
    )
    mean: float = Field(
        0.0,
        description="Mean of the normal variable of logit_normal",
        json_schema_extra=about(paper=papers.SD3, at="equation 19"),
    )
    std: float = Field(
        1.0,
        gt=0,
        description="Standard deviation of the normal variable of logit_normal",
        json_schema_extra=about(paper=papers.SD3, at="equation 19"),
    )
    range: tuple[float, float] = Field(
        (0.02, 0.98),
        description="Lowest and highest timestep as fractions of all timesteps, or of those of a segment",
        json_schema_extra=about(paper=papers.DMD, at="section 4.1"),
    )

    @field_validator("range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("two rising fractions such as [0.02, 0.98]")
        return value

    def sample(self, lower: int, upper: int, random: PerSampleRandom) -> Tensor:
        """Timesteps (B,) int64 above `lower`, at most `upper`."""
        uniform = self.distribution == "uniform"
        u = random.uniform() if uniform else torch.sigmoid(self.mean + self.std * random.normal(()))
        low, high = self.range
        return lower + ((low + (high - low) * u) * (upper - lower)).ceil().clamp(min=1).long()


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
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay per update of the student's moving average, which is exported as the student"
    )


def numbered_steps(counts: Sequence[int], schedule: NoiseSchedule, segments: bool = False) -> dict[tuple[int, int], int]:
    """The number of step k of the sampler of N steps, by (N, k).

    Steps from the same distribution of x_t to the same kind of sample have one number: the first step of every sampler is a
    prediction of x_0 from the noise. With `segments` they arrive at different points.
    """
    known: dict[tuple[int, ...], int] = {}
    return {
        (count, k): known.setdefault(tuple(rollout_times(count, schedule)[: k + 1 + segments]), len(known))
        for count in counts
        for k in range(count)
    }


class FakeScore:
    """The denoiser of the student's samples, initialised from the teacher: a `Critic` to the trainer.

    The samples of each of the student's steps have a distribution of their own, so that the number of the step is an input
    where there are several (as in TDM).
    """

    name = "fake_score"

    def __init__(self, networks: Networks, config: FakeScoreConfig, num_steps: int = 1) -> None:
        self.denoiser, self.parameters = another_network(networks, self.name)
        self.module: nn.Module = self.denoiser.network
        self.settings = OptimizerSettings(learning_rate_factor=config.learning_rate_factor)
        self.step_embedding = StepEmbedding(self.module, num_steps) if num_steps > 1 else None
        if self.step_embedding is not None:
            self.parameters["step_embedding.vectors"] = self.step_embedding.vectors

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.denoiser.network
        return network

    @network.setter
    def network(self, wrapped: nn.Module) -> None:
        self.denoiser = self.denoiser.with_network(wrapped)

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, step: int) -> Prediction:
        """The prediction at x_t (B, ...), t (B,) for samples of the student's step of that number."""
        if self.step_embedding is not None:
            self.step_embedding.step = step
        return self.denoiser(x_t, t, conditioning)


@dataclass(frozen=True)
class Samples:
    """Samples of the student from one of its steps.

    Attributes:
        x_s: (B, ...), what is matched: x_0, or the point at which the step arrives.
        s: (B,), its timestep, `clean` for x_0.
        x_0: (B, ...), the prediction of x_0 in that step.
        times: the timesteps at which x_s is matched: above the first, at most the second.
        step: the number of the step.
        conditioning: of the student (B).
        scale: guidance scale of the teacher, (B,) or one number.
    """

    x_s: Tensor
    s: Tensor
    x_0: Tensor
    times: tuple[int, int]
    step: int
    conditioning: Conditioning
    scale: Tensor | float


class DistributionMatching(DenoiserMethod):
    """The student and its fake score, in turns.

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
        self.steps, self.eta = list(steps), fresh_noise(solver)
        networks.decay = config.ema_decay
        self.numbers = numbered_steps(steps, networks.teacher.schedule, config.segments)
        self.fake_score = FakeScore(networks, config.fake_score, max(self.numbers.values()) + 1)
        self.logs_behind = 0

    @property
    def critics(self) -> list[Critic]:
        return [self.fake_score, *super().critics]

    @property
    def shards(self) -> bool:
        return not self.auxiliary

    @property
    def cycle(self) -> int:
        return self.config.fake_score.steps

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        trains_student = (step + 1) % self.cycle == 0
        samples = self.generate(batch, random, learning=trains_student)
        if trains_student:
            own, watch = self.student_loss(samples, random)
            yield from self.student_updates(own, batch, step, random, watch)
        loss = self.fake_score_loss(samples, random)
        yield Update(loss, (self.fake_score.name,), {"fake_score_loss": loss.detach()}, {"student": samples.x_0.mean()})

    def generate(self, batch: Batch, random: PerSampleRandom, *, learning: bool) -> Samples:
        """Samples of a step of the student, for the conditions of a batch; its sampler makes the steps before without gradient.

        The step count and the step are random, the same for all samples of an optimizer step.
        """
        student, shape, device = self.networks.student, batch.latents.shape[1:], batch.latents.device
        schedule = student.schedule
        conditioning, scale = self.guidance.sample(batch.conditioning, random)
        which_count, which_step = random.of_step(2)
        count = self.steps[int(which_count * len(self.steps))]
        k = int(which_step * count)
        noise = to_device(random.normal(shape), device)
        sampler_step = partial(self._sampler_step, random=random)
        x_t, t = few_step_rollout(student, noise, conditioning, count, k, sampler_step)
        with torch.set_grad_enabled(learning):
            prediction = student(x_t, t, conditioning)
            lower, upper = schedule.clean, schedule.num_train_timesteps - 1
            if self.config.segments:
                upper, lower = rollout_times(count, schedule)[k : k + 2]
            s = torch.full_like(t, lower)
            x_s = sampler_step(prediction, s)
        number = self.numbers[count, k]
        return Samples(x_s, s, prediction.x_0, (lower, upper), number, conditioning, scale)

    def _sampler_step(self, prediction: Prediction, s: Tensor, random: PerSampleRandom) -> Tensor:
        """x_s (B, ...) of a step of the student's sampler."""
        noise = random.normal(prediction.x_0.shape[1:]) if self.eta else torch.zeros(())
        return noisy_step(prediction, to_device(noise, s.device), s, self.networks.student.schedule, self.eta)

    def diffused(self, samples: Samples, random: PerSampleRandom) -> tuple[Tensor, Tensor, Prediction, Tensor]:
        """x_t and t of the forward process from detached samples, and the target and weight of a denoiser of these."""
        x_s = samples.x_s.detach()
        t = to_device(self.config.times.sample(*samples.times, random), x_s.device)
        noise = to_device(random.normal(x_s.shape[1:]), x_s.device)
        x_t, target, weight = forward_process(x_s, noise, samples.s, t, self.networks.teacher.schedule)
        return x_t, t, target, weight

    def student_loss(self, samples: Samples, random: PerSampleRandom) -> tuple[LossAndLogs, dict[str, Tensor]]:
        """A scalar with the gradient of the reverse KL, values for the log, and the outputs that it depends on.

        The teacher alone is guided: the fake score has learned from the student whatever guidance that has.
        """
        teacher, conditioning = self.networks.teacher, samples.conditioning
        with torch.no_grad():
            x_t, t, target, weight = self.diffused(samples, random)
            real = self.guidance.predict(teacher, x_t, t, conditioning, samples.scale)
            fake = self.fake_score(x_t, t, conditioning, samples.step)
            gradient = reverse_kl_gradient(samples.x_0, fake.x_0, real.x_0)
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
        """The fake score no longer knows the student's samples, so that its gradients mean nothing."""
        if "fake_score_error" in logs:
            self.logs_behind = self.logs_behind + 1 if logs["fake_score_error"] > BEHIND else 0
        if self.logs_behind < LOGS_BEHIND:
            return None
        return (
            f"the fake score falls behind, its error on the student's samples is more than {BEHIND:g} times the teacher's in "
            f"{LOGS_BEHIND} logged steps; a smaller trainer.learning_rate or more distribution_matching.fake_score.steps helps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"logs_behind": self.logs_behind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.logs_behind = state["logs_behind"]


def denoising_loss(denoiser: Denoiser, prediction: Prediction, target: Prediction, t: Tensor, weight: Tensor) -> Tensor:
    """The squared error in the denoiser's own prediction type, with a weight (B,) for each sample: a scalar."""
    error = denoiser.output_of(prediction, t) - denoiser.output_of(target, t)
    return (expand_to(weight, error) * error.square()).mean()


class DistributionMatchingRecipe(Recipe):
    """One stage; the student is trained, validated and exported with one solver, the first of `solvers`."""

    name = section = "distribution_matching"
    Config = DistributionMatchingConfig
    summary = "Matches the distribution of the student's samples by two scores, from prompts alone: no image is copied"
    supports = Supports(auxiliary_losses=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: DistributionMatchingConfig = config.distribution_matching
        if settings.fake_score.steps > config.trainer.max_steps:
            raise ValueError(
                f"distribution_matching.fake_score.steps {settings.fake_score.steps}: the student is never updated; expects "
                f"at most trainer.max_steps ({config.trainer.max_steps})"
            )

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, networks, solvers = context.config, context.networks(), context.solvers[:1]
        auxiliary = auxiliary_alignment(context, networks, config.steps)
        guidance, settings = Guidance(context.unconditional, config.guidance), config.distribution_matching
        method = DistributionMatching(networks, guidance, settings, config.steps, solvers[0], auxiliary)
        yield Stage(method, config.trainer, steps=config.steps, solvers=solvers)
