"""Progressive distillation (Salimans & Ho 2022), of guided teachers too (Meng et al. 2023).

A student learns to do in one DDIM step what its teacher does in two, then becomes the teacher of the next stage: 64 steps,
32, ..., 1. What it is fitted to is a prediction, x_0 and eps at once, so that every dialect and weighting reads its own.

Two kinds of stage halve nothing, and come first. Their target is the teacher's own prediction at a time that the next stage
visits, `teacher(x_t, t)`:

- one network for the two branches of guidance (Meng et al. 2023, section 3.1): the teacher is guided, and the student takes
  the scale as an input, or keeps one;
- another dialect. An epsilon student cannot be halved to one step well: x_0 = (x_t - sigma eps) / alpha makes much of a
  small error where alpha is small, and has no meaning where it is 0 (section 4 of the paper, whose own teachers predict x_0,
  v, or both x_0 and eps). No choice of weights turns a network that says eps into one that says v = (eps - sigma x_t) / alpha,
  which would need the network's input added in a proportion that depends on t. So the student is asked for
  (1 - share) eps + share v, and share grows from 0, where it is the teacher, to 1 (`Denoiser.speaking`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from gendistill.data.batches import Batch
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks, next_networks
from gendistill.methods.alignment import auxiliary_alignment, needs_trajectories
from gendistill.methods.denoiser_method import AuxiliaryLoss, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.halving import halving_target, halving_times, halvings, sampled_times
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to
from gendistill.settings.section import Section
from gendistill.training.trainer_config import TrainerConfig


class ProgressiveConfig(Section):
    """Progressive step-halving (`--method progressive`); the trainer's limits are those of each stage."""

    formerly: ClassVar[dict[str, str]] = {"dialect_steps": "prediction_type_steps"}
    start_steps: int = Field(64, ge=2, description="steps of the teacher before the first halving; 64 gives 32, 16, ..., 1")
    prediction_type: Literal["v_prediction", "sample", "epsilon"] = Field(
        "v_prediction", description="of the student where the teacher predicts the noise"
    )
    weighting: Literal["truncated_snr", "snr_plus_one", "snr", "uniform"] = Field(
        "truncated_snr", description="of the squared error of x_0"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the average, which is the student and the next stage's teacher")
    prediction_type_steps: int = Field(
        300, ge=0, description="optimizer steps over which a student of an epsilon teacher goes over to v; 0 jumps"
    )
    sampler: Literal["ddim", "stochastic"] = Field(
        "ddim", description="deterministic; or two steps forward, one back, whose students make steps twice as long"
    )
    grid: list[int] | None = Field(
        None, description="timesteps of one of the students, falling, as `gendistill grid` finds them; trailing where not given"
    )
    stages: dict[str, dict[str, Any]] = Field(
        {},
        description="settings of the trainer for single stages, by name: {guidance_distillation: {max_steps: 900}, 4: {patience: 3}}",
        examples=["settings by stage such as {guidance_distillation: {max_steps: 900}, 4: {patience: 3}}"],
    )

    @field_validator("stages", mode="before")
    @classmethod
    def _names_are_texts(cls, stages: Any) -> Any:
        """Python writes the name of a stage of 4 steps as a number; the first stage had another name in earlier versions."""
        former = {"imitation": "guidance_distillation"}
        return (
            {former.get(str(name), str(name)): settings for name, settings in stages.items()}
            if isinstance(stages, dict)
            else stages
        )

    @property
    def calls_a_step(self) -> int:
        """Network calls in which the sampler goes as far as one step of a student."""
        return 2 if self.sampler == "stochastic" else 1


WEIGHTINGS = ("truncated_snr", "snr_plus_one", "snr", "uniform")


def x_0_weight(t: Tensor, weighting: str, schedule: NoiseSchedule) -> Tensor:
    """w(t) of the loss w(t) |x_0 error|^2, float64 of t's shape (Salimans & Ho 2022, section 4, with SNR = alpha^2 / sigma^2).

    - `snr`: SNR, the error of eps. It is 0 where the signal is gone, where a student of one step has its only time.
    - `truncated_snr`: max(SNR, 1), the larger of the errors of x_0 and eps; the paper's choice beside the next.
    - `snr_plus_one`: SNR + 1, under `vp` the error of v.
    - `uniform`: 1, the error of x_0.

    It is inf at `clean`. `prediction_loss` computes the same without the SNR.
    """
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    weights = {"snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": snr + 1, "uniform": torch.ones_like(snr)}
    return weights[_known(weighting)]


def prediction_loss(prediction: Prediction, target: Prediction, weighting: str = "truncated_snr") -> Tensor:
    """The mean, over the batch and its elements, of x_0's squared error times `x_0_weight`: a scalar.

    Two predictions at one x_t have alpha dx_0 = -sigma deps, so SNR dx_0^2 is deps^2. No SNR is computed, so none is infinite
    and none is 0.
    """
    x_0, eps = (prediction.x_0 - target.x_0).square(), (prediction.eps - target.eps).square()
    if _known(weighting) == "snr":
        return eps.mean()
    if weighting == "truncated_snr":
        return torch.maximum(x_0, eps).mean()
    return (x_0 + eps).mean() if weighting == "snr_plus_one" else x_0.mean()


def _known(weighting: str) -> str:
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is not known; expects one of {', '.join(WEIGHTINGS)}")
    return weighting


class ProgressiveDistillation(DenoiserMethod):
    """What all stages share: a time of the stage's grid for each sample, and a prediction to be fitted there.

    Args:
        times: (N,) falling, the times that the student is trained at: those that it is sampled at. At the first of them it
            sees noise alone, as a sampler begins; at the others noisy data.
    """

    name = "progressive"

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: ProgressiveConfig,
        times: Tensor,
        auxiliary: Sequence[AuxiliaryLoss] = (),
    ) -> None:
        self.networks, self.guidance, self.config, self.times, self.auxiliary = networks, guidance, config, times, auxiliary
        networks.decay = config.ema_decay

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        latents = batch.latents
        noise = random.normal(latents.shape[1:]).to(latents.device)
        row = (random.uniform() * len(self.times)).long()
        t = self.times[row].to(latents.device)
        begins = expand_to(row == 0, latents).bool()
        x_t = torch.where(begins, noise, self.networks.teacher.schedule.add_noise(latents, noise, t))
        conditioning, scale = self.guidance.sample(batch.conditioning, random)
        target = self.target(x_t, row, conditioning, scale)
        return self.fit(x_t, t, conditioning, target, step), {}

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        """What the student must say of x_t (B, ...) at `times[row]`."""
        raise NotImplementedError

    def fit(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, target: Prediction, step: int) -> Tensor:
        """How far from it the student is, in step `step` of its training: a scalar."""
        return prediction_loss(self.networks.student(x_t, t, conditioning), target, self.config.weighting)


class GuidanceDistillation(ProgressiveDistillation):
    """The stage that halves nothing: the guided teacher's own prediction, in one call and in the student's dialect.

    A student that changes from eps to v does so over `prediction_type_steps` steps: what its output is fitted to is
    `(1 - share) eps + share v` (B, ...), and share grows from 0 to 1.
    """

    @torch.no_grad()
    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        return self.guidance.predict(self.networks.teacher, x_t, self.times[row].to(x_t.device), conditioning, scale)

    def fit(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, target: Prediction, step: int) -> Tensor:
        student = self.networks.student
        if step >= self.config.prediction_type_steps or student.prediction_type in (
            "sample",
            self.networks.teacher.prediction_type,
        ):
            return super().fit(x_t, t, conditioning, target, step)
        student = student.with_prediction_type(student.prediction_type, step / self.config.prediction_type_steps)
        return mse_loss(student.output_of(student(x_t, t, conditioning), t), student.output_of(target, t))


class StepHalving(ProgressiveDistillation):
    """One step of the student for two of its teacher, which is called as the student is."""

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: ProgressiveConfig,
        num_steps: int,
        auxiliary: Sequence[AuxiliaryLoss] = (),
    ) -> None:
        stochastic = config.sampler == "stochastic"
        self.halving = halving_times(num_steps, networks.teacher.schedule, stochastic=stochastic, grid=config.grid or ())
        super().__init__(networks, guidance, config, self.halving.t, auxiliary)

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        teacher = self.networks.teacher
        t, middle, s = (times[row].to(x_t.device) for times in (self.halving.t, self.halving.middle, self.halving.s))
        return halving_target(lambda x, at: teacher(x, at, conditioning), x_t, t, middle, s, teacher.schedule)


GUIDANCE_STAGE = "guidance_distillation"  # the stage before the first halving


class ProgressiveRecipe(Recipe):
    """The distillation of guidance or into another prediction type, where there is any, then one stage a halving.

    Each stage's teacher is the average that the one before has made; the student starts as it. Stages are named by the
    network calls of their students, which the stochastic sampler makes two of a step.
    """

    name = section = "progressive"
    Config = ProgressiveConfig
    summary = "halves the steps again and again: deterministic students, each for its own step count"
    supports = Supports(auxiliary_losses=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: ProgressiveConfig = config.progressive
        counts = network_calls(config)
        if not set(config.steps) <= set(counts):
            raise ValueError(
                f"steps {config.steps}: expects some of {counts}, which progressive.start_steps {settings.start_steps} is "
                "halved to"
            )
        names = [GUIDANCE_STAGE, *map(str, counts)]
        for name in settings.stages:
            if name not in names:
                raise ValueError(f"progressive.stages.{name} is not known; expects one of {', '.join(names)}")
            _trainer(config, name)
        if (grid := settings.grid) is None:
            return
        if not grid or min(grid) < 0 or sorted(set(grid), reverse=True) != grid:
            raise ValueError(f"progressive.grid {grid}: expects falling timesteps, such as [999, 749, 499, 249]")
        if len(grid) not in counts or any(two != 2 * one for two, one in pairwise([settings.start_steps, *counts])):
            raise ValueError(
                f"progressive.grid of {len(grid)} timesteps: expects as many as one of the students makes steps, {counts}, "
                "where each makes half as many as the one before"
            )

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, teacher = context.config, context.teacher
        settings: ProgressiveConfig = config.progressive
        guidance = Guidance(context.unconditional, config.guidance)
        embedded = config.guidance.mode == "embedded"
        prediction_type = settings.prediction_type if teacher.prediction_type == "epsilon" else teacher.prediction_type
        networks = context.networks()

        def stage(method: ProgressiveDistillation, name: str, steps: int, solver: str, student: str | None) -> Stage:
            grids = [sampled_times(steps, teacher.schedule, settings.grid).tolist()] if settings.grid else []
            return Stage(method, _trainer(config, name), student, f"stages/{name}", [steps], [solver], grids)

        guided = embedded or (config.guidance.mode == "baked" and config.guidance.scale > 1)
        if guided or prediction_type != teacher.prediction_type:
            networks.student = networks.student.with_prediction_type(prediction_type)
            networks.average = networks.average.with_prediction_type(prediction_type)
            times = sampled_times(settings.start_steps * settings.calls_a_step, teacher.schedule, settings.grid or ())
            method = GuidanceDistillation(networks, guidance, settings, times)
            yield stage(method, GUIDANCE_STAGE, settings.start_steps, "ddim", None)
            networks = next_networks(networks)
        for number, count in enumerate(network_calls(config)):
            networks = next_networks(networks) if number else networks
            student = f"student-{count}" if count in config.steps else None
            auxiliary = auxiliary_alignment(context, networks, [count], _trainer(config, str(count))) if student else []
            halving = StepHalving(networks, guidance, settings, count // settings.calls_a_step, auxiliary)
            yield stage(halving, str(count), count, settings.sampler, student)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        students = {str(count): f"student-{count}" for count in config.steps}
        names = [GUIDANCE_STAGE, *map(str, network_calls(config))]
        return [StageOutline(name, _trainer(config, name), students.get(name)) for name in names]


def network_calls(config: RunConfig) -> list[int]:
    """Network calls of the students of all halvings.

    Raises:
        ValueError: it cannot be halved to the least of `steps`.
    """
    settings: ProgressiveConfig = config.progressive
    a_step, fewest = settings.calls_a_step, min(config.steps)
    if fewest % a_step:
        raise ValueError(f"steps {config.steps}: expects even numbers for the stochastic sampler")
    return [a_step * count for count in halvings(settings.start_steps, fewest // a_step)]


def _trainer(config: RunConfig, stage: str) -> TrainerConfig:
    """The trainer's settings for a stage: those of all stages, and its own over them."""
    return config.trainer.updated(config.progressive.stages.get(stage, {}), f"progressive.stages.{stage}")
