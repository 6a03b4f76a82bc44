"""Progressive distillation (Salimans & Ho 2022), of guided teachers too (Meng et al. 2023).

A student is trained to reach in one DDIM step the x_s that its teacher reaches in two, then becomes the teacher of the next
stage: 64 steps, 32, ..., 1. The target is a prediction, x_0 and eps, from which each prediction type and each weighting
computes its own target.

A first stage without halving may precede these. Its target is the teacher's prediction at the timesteps of the next stage,
`teacher(x_t, t)`. It has two purposes:

- distillation of guidance (Meng et al. 2023, section 3.1): the teacher is guided, and the student, a single network call, has
  the guidance scale as an input, or learns one scale;
- change of the prediction type. An epsilon student cannot be halved to one step well: x_0 = (x_t - sigma eps) / alpha amplifies
  small errors where alpha is small, and is undefined where alpha is 0 (section 4 of the paper, whose own teachers predict x_0,
  v, or both x_0 and eps). No weights turn a network that predicts eps into one that predicts v = (eps - sigma x_t) / alpha,
  since the coefficient of the network's input x_t depends on t. So the output is trained as (1 - fraction) eps + fraction v,
  with a fraction that grows from 0, where the student equals the teacher, to 1 (`Denoiser.with_prediction_type`). A stage that
  a limit ends earlier hands its fraction over: its student is read as the mix that it predicts, and the next stage continues
  the change. No student is exported before the fraction is 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from gendistill.data.batches import Batch
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks, next_networks
from gendistill.methods.alignment import needs_trajectories
from gendistill.methods.auxiliary_losses import auxiliary_losses
from gendistill.methods.denoiser_method import AuxiliaryLoss, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.halving import halving_target, halving_times, halvings, sampled_times
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.method import Update
from gendistill.training.trainer_config import TrainerConfig


class ProgressiveConfig(Section):
    """Progressive distillation (`--method progressive`); the limits of the trainer hold for each stage."""

    formerly: ClassVar[dict[str, str]] = {"dialect_steps": "prediction_type_steps"}
    start_steps: int = Field(
        64,
        ge=2,
        description="DDIM steps of the teacher before the first halving; 64 gives students of 32, 16, 8, 4, 2 and 1 steps",
        json_schema_extra=about("steps", papers.PROGRESSIVE, "algorithm 2"),
    )
    prediction_type: Literal["v_prediction", "sample", "epsilon"] = Field(
        "v_prediction",
        description="Prediction type of the student, where the teacher predicts the noise",
        json_schema_extra=about(paper=papers.PROGRESSIVE, at="section 4"),
    )
    weighting: Literal["truncated_snr", "snr_plus_one", "snr", "uniform"] = Field(
        "truncated_snr",
        description="Weight, as a function of the signal-to-noise ratio, of the squared error of x_0",
        json_schema_extra=about(paper=papers.PROGRESSIVE, at="section 4"),
    )
    ema_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay per step of the moving average, which is the student and the teacher of the next stage",
    )
    prediction_type_steps: int = Field(
        300,
        ge=0,
        description="Optimizer steps over which the training target changes from epsilon to the student's prediction type, at "
        "most half of the stage's max_steps; 0 changes it at once",
        json_schema_extra=about("steps"),
    )
    sampler: Literal["ddim", "stochastic"] = Field(
        "ddim",
        description="Sampler of the students: deterministic DDIM, or two steps forward and one step of noise back",
        json_schema_extra=about(paper=papers.GUIDED),
    )
    grid: list[int] | None = Field(
        None,
        description="Falling timesteps of one of the students, such as those that `gendistill grid` finds; null is the "
        "trailing grid",
        examples=[[999, 774, 574, 274]],
    )
    stages: dict[str, dict[str, Any]] = Field(
        {},
        description="Settings of the trainer for single stages, by the stage's name",
        examples=[{"guidance_distillation": {"max_steps": 900}, "4": {"patience": 3}}],
    )

    @field_validator("stages", mode="before")
    @classmethod
    def _text_names(cls, stages: Any) -> Any:
        """Stage names as text (YAML reads `4` as a number); the first stage had another name in earlier versions."""
        former = {"imitation": "guidance_distillation"}
        return (
            {former.get(str(name), str(name)): settings for name, settings in stages.items()}
            if isinstance(stages, dict)
            else stages
        )

    @property
    def calls_a_step(self) -> int:
        """Network calls of the sampler for the distance of one student step."""
        return 2 if self.sampler == "stochastic" else 1


COMPLETE = 0.99  # fraction of the EMA's prediction type from which the rest is smaller than the error of any student
WEIGHTINGS = ("truncated_snr", "snr_plus_one", "snr", "uniform")


def x_0_weight(t: Tensor, weighting: str, schedule: NoiseSchedule) -> Tensor:
    """w(t) of the loss w(t) |x_0 error|^2, float64 of t's shape (Salimans & Ho 2022, section 4, with SNR = alpha^2 / sigma^2).

    - `snr`: SNR, the error of eps. It is 0 at zero SNR, the only timestep of a one-step student.
    - `truncated_snr`: max(SNR, 1), the larger of the errors of x_0 and eps; the paper uses this one and the next.
    - `snr_plus_one`: SNR + 1, for `vp` the error of v.
    - `uniform`: 1, the error of x_0.

    SNR is infinite at `clean`. `prediction_loss` computes the weighted error without the SNR.
    """
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    weights = {"snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": snr + 1, "uniform": torch.ones_like(snr)}
    return weights[_known(weighting)]


def prediction_loss(prediction: Prediction, target: Prediction, weighting: str = "truncated_snr") -> Tensor:
    """The squared error of x_0 times `x_0_weight`, averaged over the batch and its elements: a scalar.

    The differences of two predictions at the same x_t satisfy alpha dx_0 = -sigma deps, so SNR dx_0^2 is deps^2. The SNR
    itself, which may be infinite or 0, is not computed.
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
    """The base of all stages: a random timestep of the stage's grid for each sample, and a target prediction there.

    Args:
        times: (N,) descending, the timesteps of training, which are those of sampling. At the first of them x_t is pure noise,
            as in a sampler; at the others noisy data.
        max_steps: limit of the stage; None does not limit the change of the prediction type.

    Attributes:
        start: fraction of the student's prediction type in the output of its initial weights; the rest is eps.
        change_steps: steps in which that fraction would grow from 0 to 1.
    """

    name = "progressive"

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: ProgressiveConfig,
        times: Tensor,
        auxiliary: Sequence[AuxiliaryLoss] = (),
        max_steps: int | None = None,
    ) -> None:
        self.networks, self.guidance, self.config, self.times, self.auxiliary = networks, guidance, config, times, auxiliary
        networks.decay = config.ema_decay
        student = networks.student
        self.start = student.fraction
        self.change_steps = config.prediction_type_steps
        self._averaged = (0, self.start)  # a step and its `average_fraction`, from which the next one is computed
        if max_steps is not None:
            self.change_steps = min(self.change_steps, max_steps // 2)
            while self.change_steps and self.average_fraction(max_steps) < 1:  # a stage too short for its EMA to follow
                self.change_steps, self._averaged = self.change_steps // 2, (0, self.start)
        if student.prediction_type == "sample" or not self.change_steps:
            self.start = 1.0
        self._averaged = (0, self.start)
        self.weights_of(0)

    def fraction(self, step: int) -> float:
        """The fraction of the student's prediction type in the output that training step `step` (from 0) fits."""
        return min(1.0, self.start + step / self.change_steps) if self.start < 1 else 1.0

    def average_fraction(self, step: int) -> float:
        """The same fraction in the output of the EMA after `step` steps, as the EMA averages the students of all of them."""
        first, fraction = self._averaged if self._averaged[0] <= step else (0, self.start)
        for trained in range(first, step if self.start < 1 else first):
            decay = self.networks.decay_at(trained + 1)
            fraction = decay * fraction + (1 - decay) * self.fraction(trained)
        self._averaged = (step, fraction)
        return fraction if fraction < COMPLETE else 1.0

    def weights_of(self, step: int) -> None:
        average = self.networks.average
        self.networks.average = average.with_prediction_type(average.prediction_type, self.average_fraction(step))

    def after_step(self, step: int, skipped: Collection[str] = ()) -> None:
        super().after_step(step, skipped)
        self.weights_of(step)

    def state_dict(self) -> dict[str, Any]:
        return {"change": [self.start, self.change_steps]} if self.start < 1 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.change_steps = state.get("change", [self.start, self.change_steps])  # max_steps may be another now
        self._averaged = (0, self.start)

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        student = self.networks.student
        self.networks.student = student.with_prediction_type(student.prediction_type, self.fraction(step))
        yield from super().updates(batch, step, random)

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        latents = batch.latents
        noise = to_device(random.normal(latents.shape[1:]), latents.device)
        row = (random.uniform() * len(self.times)).long()
        t = to_device(self.times[row], latents.device)
        is_first = expand_to(row == 0, latents).bool()
        x_t = torch.where(is_first, noise, self.networks.teacher.schedule.add_noise(latents, noise, t))
        conditioning, scale = self.guidance.sample(batch.conditioning, random)
        target = self.target(x_t, row, conditioning, scale)
        return self.fit(x_t, t, conditioning, target, step), {}

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        """The target prediction of the student at x_t (B, ...), `times[row]`."""
        raise NotImplementedError

    def fit(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, target: Prediction, step: int) -> Tensor:
        """The loss between the student's prediction and `target` in training step `step`: a scalar.

        During the change of the prediction type it compares the outputs `(1 - fraction) eps + fraction v` (B, ...).
        """
        student = self.networks.student
        if student.fraction == 1:
            return prediction_loss(student(x_t, t, conditioning), target, self.config.weighting)
        return mse_loss(student.output_of(student(x_t, t, conditioning), t), student.output_of(target, t))


class GuidanceDistillation(ProgressiveDistillation):
    """The stage without halving: the guided teacher's prediction in one network call, in the student's prediction type."""

    @torch.no_grad()
    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        return self.guidance.predict(self.networks.teacher, x_t, to_device(self.times[row], x_t.device), conditioning, scale)


class StepHalving(ProgressiveDistillation):
    """One step of the student for two of its teacher, at the same conditions."""

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: ProgressiveConfig,
        num_steps: int,
        auxiliary: Sequence[AuxiliaryLoss] = (),
        max_steps: int | None = None,
    ) -> None:
        stochastic = config.sampler == "stochastic"
        self.halving = halving_times(num_steps, networks.teacher.schedule, stochastic=stochastic, grid=config.grid or ())
        super().__init__(networks, guidance, config, self.halving.t, auxiliary, max_steps)

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        teacher = self.networks.teacher
        t, middle, s = (to_device(times[row], x_t.device) for times in (self.halving.t, self.halving.middle, self.halving.s))
        return halving_target(lambda x_t, t: teacher(x_t, t, conditioning), x_t, t, middle, s, teacher.schedule)


GUIDANCE_STAGE = "guidance_distillation"  # name of the stage before the first halving


class ProgressiveRecipe(Recipe):
    """The distillation of guidance or into another prediction type, if needed, then one stage for each halving.

    The teacher of a stage is the EMA of the stage before, which also initialises the student. Stages are named by the number of
    network calls of their students; the stochastic sampler makes two calls for each step.
    """

    name = section = "progressive"
    Config = ProgressiveConfig
    summary = "Halves the number of steps stage by stage: deterministic students, each for its own step count"
    supports = Supports(auxiliary_losses=True, feature_matching=True, added_loras=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: ProgressiveConfig = config.progressive
        counts = network_calls(config)
        if not set(config.steps) <= set(counts):
            raise ValueError(
                f"steps {config.steps}: expects values from {counts}, the step counts that progressive.start_steps "
                f"{settings.start_steps} is halved to"
            )
        names = [GUIDANCE_STAGE, *map(str, counts)]
        for name in settings.stages:
            if name not in names:
                raise ValueError(f"progressive.stages.{name} is not known; expects one of {', '.join(names)}")
            _trainer(config, name)
        if teacher is not None and teacher.denoiser.schedule.kind != "vp":
            for name, default in (("sampler", "ddim"), ("grid", None)):
                if (value := getattr(settings, name)) != default:
                    raise ValueError(
                        f"progressive.{name} {value}: no scheduler of diffusers samples so with the noise schedule of "
                        f"{teacher.source} ({teacher.denoiser.schedule.kind}); expects {default or 'null'}"
                    )
        if (grid := settings.grid) is None:
            return
        if not grid or min(grid) < 0 or sorted(set(grid), reverse=True) != grid:
            raise ValueError(f"progressive.grid {grid}: expects descending timesteps, such as [999, 749, 499, 249]")
        all_counts = [settings.start_steps, *counts]
        if len(grid) not in counts or any(teacher != 2 * student for teacher, student in pairwise(all_counts)):
            raise ValueError(
                f"progressive.grid of {len(grid)} timesteps: expects the step count of one of the students, {counts}, each of "
                "which must be half of the one before"
            )

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, teacher = context.config, context.teacher
        settings: ProgressiveConfig = config.progressive
        guidance = Guidance(context.unconditional, config.guidance)
        networks = context.networks()
        initial = networks.student.prediction_type
        prediction_type = settings.prediction_type if initial == "epsilon" else initial

        def stage(method: ProgressiveDistillation, name: str, steps: int, solver: str, student: str | None) -> Stage:
            grids = [sampled_times(steps, teacher.schedule, settings.grid).tolist()] if settings.grid else []
            return Stage(method, _trainer(config, name), student, f"stages/{name}", [steps], [solver], grids)

        if config.guidance.changes(teacher) or prediction_type != initial:
            fraction = 1.0 if prediction_type == initial else 0.0
            networks.student = networks.student.with_prediction_type(prediction_type, fraction)
            networks.average = networks.average.with_prediction_type(prediction_type, fraction)
            times = sampled_times(settings.start_steps * settings.calls_a_step, teacher.schedule, settings.grid or ())
            max_steps = _trainer(config, GUIDANCE_STAGE).max_steps
            method = GuidanceDistillation(networks, guidance, settings, times, max_steps=max_steps)
            yield stage(method, GUIDANCE_STAGE, settings.start_steps, "ddim", None)
            networks = next_networks(networks)
        for index, count in enumerate(network_calls(config)):
            networks = next_networks(networks) if index else networks
            student = f"student-{count}" if count in config.steps else None
            trainer = _trainer(config, str(count))
            auxiliary = auxiliary_losses(context, networks, [count]) if student else []
            halving = StepHalving(networks, guidance, settings, count // settings.calls_a_step, auxiliary, trainer.max_steps)
            yield stage(halving, str(count), count, settings.sampler, student)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        students = {str(count): f"student-{count}" for count in config.steps}
        names = [GUIDANCE_STAGE, *map(str, network_calls(config))]
        return [StageOutline(name, _trainer(config, name), students.get(name)) for name in names]


def network_calls(config: RunConfig) -> list[int]:
    """Numbers of network calls of the students of all halvings.

    Raises:
        ValueError: `start_steps` cannot be halved to the smallest of `steps`.
    """
    settings: ProgressiveConfig = config.progressive
    calls_a_step, fewest = settings.calls_a_step, min(config.steps)
    if fewest % calls_a_step:
        raise ValueError(f"steps {config.steps}: expects even numbers for the stochastic sampler")
    return [calls_a_step * count for count in halvings(settings.start_steps, fewest // calls_a_step)]


def _trainer(config: RunConfig, stage: str) -> TrainerConfig:
    """The trainer's settings for a stage: those of the run, updated by those of the stage."""
    return config.trainer.updated(config.progressive.stages.get(stage, {}), f"progressive.stages.{stage}")
