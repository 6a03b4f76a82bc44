"""Fine-tuning of a few-step student on new images, so that it keeps its few steps.

The diffusion loss (Ho et al. 2020) trains a network to denoise in many small steps, and a few-step student unlearns its few
steps by it: `plain`, the baseline. The candidates of `keep` avoid that. The teacher, which was trained by that loss, learns the
new images; its change is added to the student, which has its structure and started from its weights (`carry`); or the student
is distilled from the changed teacher (`distill`); or both (`carry_distill`). Or a discriminator compares the student's few-step
samples with the new images (`adversarial`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.diffusion.carried_networks import (
    CarriedNetworks,
    carried_networks,
    fine_tuned_teacher,
    require_same_weights,
)
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import (
    AdapterView,
    Networks,
    full_networks,
    lora_config,
    lora_networks,
    networks_from_adapter,
)
from gendistill.methods.consistency import ConsistencyRecipe
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.distribution_matching import DistributionMatchingRecipe, denoising_loss
from gendistill.methods.feature_adversary import AdversarialRecipe
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.methods.student_samples import TimesConfig
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.trainer_config import TrainerConfig

CONTINUING: dict[str, Recipe] = {"consistency": ConsistencyRecipe(), "distribution_matching": DistributionMatchingRecipe()}
ADVERSARIAL = AdversarialRecipe()
TEACHER_STAGE = "teacher"  # name of the stage before the student is distilled
STEPS_OF_TEACHER = 20  # of its validations where it is not the student's change


class FineTuningConfig(Section):
    """Fine-tuning of a few-step student (`gendistill finetune`)."""

    keep: Literal["carry", "distill", "carry_distill", "adversarial", "plain"] = Field(
        "carry",
        description="How the student keeps its few steps: the teacher learns the images and its change is carried over, the "
        "student is distilled from that teacher, both, or an adversarial loss; plain is the diffusion loss, which loses them",
    )
    method: Literal["consistency", "distribution_matching"] = Field(
        "consistency", description="Method by which distill and carry_distill continue the student, with its own settings"
    )
    teacher_fraction: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Fraction of the run's minutes and steps in which the teacher learns, before the student is distilled",
    )
    times: TimesConfig = TimesConfig(range=(0.0, 1.0))
    ema_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of what learns by the diffusion loss",
        json_schema_extra=about(paper=papers.DDPM, at="section 4"),
    )


def diffusion_loss(denoiser: Denoiser, x_0: Tensor, noise: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """The squared error of a denoiser at x_t = alpha x_0 + sigma noise in its own prediction type, the mean: a scalar.

    That of eps is L_simple (Ho et al. 2020, equation 14), that of flow the conditional flow matching loss (Lipman et al. 2023).

    Args:
        x_0, noise: (B, ...); t: (B,).
    """
    x_t = denoiser.schedule.add_noise(x_0, noise, t)
    prediction = denoiser(x_t, t, conditioning)
    return denoising_loss(denoiser, prediction, Prediction(x_0, noise), t, torch.ones(len(t), device=x_0.device))


class FineTuning(DenoiserMethod):
    """Training of one denoiser by its diffusion loss."""

    name = "fine_tuning"

    def __init__(self, networks: Networks, guidance: Guidance, config: FineTuningConfig) -> None:
        self.networks, self.guidance, self.config = networks, guidance, config
        networks.decay = config.ema_decay

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        student, latents = self.networks.student, batch.latents
        noise = to_device(random.normal(latents.shape[1:]), latents.device)
        t = self.config.times.sample(student.schedule.clean, student.schedule.num_train_timesteps - 1, random)
        conditioning, _ = self.guidance.sample(batch.conditioning, random)
        return diffusion_loss(student, latents, noise, to_device(t, latents.device), conditioning), {}


class FineTuningRecipe(Recipe):
    """One stage; or one in which the teacher learns the images, and one in which the student is distilled from it."""

    name = section = "fine_tuning"
    Config = FineTuningConfig
    summary = "A few-step student learns new images and keeps its few steps: gendistill finetune"
    supports = Supports(compression=False, planning=False, student_lora=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: FineTuningConfig = config.fine_tuning
        if config.start is None:
            raise ValueError(
                "start null: --method fine_tuning continues a student; expects its folder, as in gendistill finetune"
            )
        if config.data.path is None:
            raise ValueError("data.path null: there is nothing to learn; expects images, with --data")
        if config.lora.enabled and config.guidance.mode == "embedded":
            raise ValueError(
                "lora.enabled: the student has its guidance scale as an input, which a LoRA cannot train; expects false"
            )
        if config.lora.enabled and _distills(config) and settings.method != "consistency":
            raise ValueError(
                f"fine_tuning.method {settings.method}: trains a second network on the teacher; expects consistency with a LoRA"
            )
        if _distills(config):
            CONTINUING[settings.method].check(config, teacher)

    def check_start(self, context: DenoiserContext) -> None:
        config, start, spec = context.config, context.start, context.start_spec
        assert start is not None
        if spec is None:
            raise ValueError(f"start {config.start}: has no gendistill.json; expects a student of gendistill")
        if spec.lora and config.lora.enabled:
            raise ValueError(f"lora.enabled: {config.start} is a LoRA itself, to which no LoRA can be added; expects false")
        if _carries(config):
            try:
                require_same_weights(context.teacher, start)
            except ValueError as error:
                raise ValueError(
                    f"fine_tuning.keep {config.fine_tuning.keep}: the teacher's change cannot be added to the student "
                    f"{config.start}, as {error}; expects distill or adversarial, or the student's own teacher"
                ) from error

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, settings = context.config, context.config.fine_tuning
        assert context.start_spec is not None
        solver, scheduler = context.start_spec.solver, context.start_spec.scheduler()
        last = {"steps": config.steps, "solvers": [solver], "scheduler": scheduler}
        if settings.keep in ("plain", "adversarial"):
            networks = _of_student(context, context.teacher)
            if settings.keep == "adversarial":
                yield from _with(ADVERSARIAL.stages(replace(context, prepared=networks)), **last)
                return
            method = FineTuning(networks, Guidance(context.unconditional, config.guidance), settings)
            yield Stage(method, config.trainer, **last)
            return
        baked = Guidance(context.unconditional, GuidanceConfig(mode="baked"))  # the teacher's scale is no input of its training
        if not _distills(config):
            yield Stage(FineTuning(_carried(context), baked, settings), config.trainer, **last)
            return
        first, folder = _trainer(config, settings.teacher_fraction), f"stages/{TEACHER_STAGE}"
        start = context.start
        if _carries(config):
            carried = _carried(context)
            yield Stage(FineTuning(carried, baked, settings), first, None, folder, **last)
            teacher, start = fine_tuned_teacher(carried), carried.average
        else:
            networks = _of_teacher(context)
            yield Stage(FineTuning(networks, baked, settings), first, None, folder, [STEPS_OF_TEACHER], ["ddim"])
            teacher = networks.average
        torch.manual_seed(config.seed + 1)  # initial weights do not depend on what the stage before has computed
        rest = config.model_copy(update={"trainer": _trainer(config, 1 - settings.teacher_fraction)})
        networks = _of_student(replace(context, start=start), teacher)
        continued = replace(context, config=rest, teacher=teacher, start=start, prepared=networks)
        yield from _with(CONTINUING[settings.method].stages(continued), **last)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        if not _distills(config):
            return [StageOutline("", config.trainer)]
        fraction, method = config.fine_tuning.teacher_fraction, config.fine_tuning.method
        return [
            StageOutline(TEACHER_STAGE, _trainer(config, fraction), None),
            StageOutline(method, _trainer(config, 1 - fraction)),
        ]


def _carries(config: RunConfig) -> bool:
    return config.fine_tuning.keep in ("carry", "carry_distill")


def _distills(config: RunConfig) -> bool:
    return config.fine_tuning.keep in ("distill", "carry_distill")


def _trainer(config: RunConfig, fraction: float) -> TrainerConfig:
    """The trainer's settings for a stage of that fraction of the run's minutes and steps."""
    trainer = config.trainer
    minutes = None if trainer.max_minutes is None else fraction * trainer.max_minutes
    return trainer.model_copy(update={"max_minutes": minutes, "max_steps": max(1, round(fraction * trainer.max_steps))})


def _with(stages: Iterator[Stage], **changes: Any) -> Iterator[Stage]:
    """The stages of another recipe, validated and exported with the sampler that the student had."""
    for stage in stages:
        yield replace(stage, **changes)


def _adapter(context: DenoiserContext) -> Any:
    """The configuration of the adapter by the settings; None where all weights are trained."""
    lora = context.config.lora
    return lora_config(context.family.lora_targets, lora.rank, lora.alpha) if lora.enabled else None


def _carried(context: DenoiserContext) -> CarriedNetworks:
    assert context.start is not None
    return carried_networks(context.teacher, context.start, _adapter(context))


def _of_teacher(context: DenoiserContext) -> Networks:
    """Networks that train the teacher."""
    lora = _adapter(context)
    return full_networks(context.teacher) if lora is None else lora_networks(context.teacher, lora)


def _of_student(context: DenoiserContext, teacher: Denoiser) -> Networks:
    """Networks that train the student at `start`, all weights or an adapter on it, from `teacher`."""
    start, lora = context.start, _adapter(context)
    assert start is not None
    if lora is None:
        return full_networks(teacher, start.network.config.get("time_cond_proj_dim"), start)
    is_adapter = isinstance(start.network, AdapterView)
    networks = networks_from_adapter(start, start) if is_adapter else lora_networks(start, lora)
    networks.teacher = teacher
    return networks
