"""Compression of a denoiser: a smaller network with the predictions of its teacher at every timestep.

The student is initialised by pruning the teacher (`networks.pruning.denoiser_pruning`), and is trained on the teacher's
output, on the feature maps of its blocks, and on the relations between the images of a batch there (Kim et al. 2023, BK-SDM,
section 3.2, with regressors where channels differ). It is sampled in as many steps as its teacher; another method may then
distill it to fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.diffusion.blocks import paired_blocks, recorded_maps, shapes_of_blocks
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.pixel import l2
from gendistill.losses.terms import (
    FEATURE_LOSSES,
    RELATION_LOSSES,
    FeatureConfig,
    RelationConfig,
    Term,
    feature_terms,
    relation_terms,
)
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.networks.classes import read_arguments
from gendistill.networks.hints import Hint, Regressors
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.denoiser_pruning import DenoiserPruning, pruning_of
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.families import Family
from gendistill.schedulers import Prediction
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section
from gendistill.training.trainer_config import TrainerConfig

DEFAULT_SIZE = 64  # edge of the latents for whose images costs are computed, where the config has none, as Flux's


class CompressionConfig(Section):
    """A smaller denoiser (`--method compression`, or the first stage of another method with `--compress`)."""

    output: Weight = Field(
        1.0,
        description="Weight of the squared error of the network's output, relative to the guided teacher's",
        json_schema_extra=about(paper=papers.BK_SDM, at="section 3.2"),
    )
    task: Weight = Field(
        0.0,
        description="Weight of the squared error relative to the data, the loss of the teacher's own training",
        json_schema_extra=about(paper=papers.BK_SDM, at="section 3.2"),
    )
    features: FeatureConfig = Field(
        FeatureConfig(), description="Distances between the outputs of blocks, relative to the teacher's scale"
    )
    relations: RelationConfig = Field(
        RelationConfig(), description="Differences of the relations between a micro-batch's samples in the middle block"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay per step of the moving average, which is exported as the student"
    )
    steps: int = Field(
        20,
        ge=1,
        description="Sampling steps of the validation of the smaller network, before another method reduces them",
        json_schema_extra=about("steps"),
    )
    trainer: dict[str, Any] = Field(
        {},
        description="Settings of the trainer for this stage, where another method follows",
        examples=[{"max_steps": 4000}],
    )


class Compression(DenoiserMethod):
    """Distillation of a smaller student at timesteps sampled uniformly.

    Args:
        hints: pairs of matched blocks; empty where no loss needs feature maps.
    """

    name = "compression"

    def __init__(self, networks: Networks, guidance: Guidance, config: CompressionConfig, hints: Sequence[Hint]) -> None:
        self.networks, self.guidance, self.config, self.hints = networks, guidance, config, list(hints)
        self.regressors: Any = Regressors(self.hints).to(next(iter(networks.trained.values())).device)
        parameters = dict(self.regressors.named_parameters())
        self._regressor_parameters = {"regressors": parameters} if parameters else {}
        networks.decay = config.ema_decay

    @property
    def with_student(self) -> tuple[str, ...]:
        return tuple(self._regressor_parameters)

    def trained_modules(self) -> dict[str, nn.Module]:
        return {**super().trained_modules(), **dict.fromkeys(self._regressor_parameters, self.regressors)}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        super().replace_modules(wrapped)
        self.regressors = wrapped.get("regressors", self.regressors)

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return {**super().trained_parameters(), **self._regressor_parameters}

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        terms = list(self.terms(batch, step, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

    def terms(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and value (0-d) of each loss term of this step, for noisy data at uniform timesteps."""
        config, networks = self.config, self.networks
        latents = batch.latents
        schedule = networks.teacher.schedule
        noise = to_device(random.normal(latents.shape[1:]), latents.device)
        t = to_device((random.uniform() * schedule.num_train_timesteps).long(), latents.device)
        x_t = schedule.add_noise(latents, noise, t)
        conditioning, scale = self.guidance.sample(batch.conditioning, random)
        teacher_paths, student_paths = [hint.teacher_path for hint in self.hints], [hint.student_path for hint in self.hints]
        with torch.no_grad(), recorded_maps(networks.teacher.network, teacher_paths) as teacher_maps:
            target = self.guidance.predict(networks.teacher, x_t, t, conditioning, scale)
        with recorded_maps(networks.student.network, student_paths) as student_maps:
            prediction = networks.student(x_t, t, conditioning)
        output = networks.student.output_of(prediction, t)
        if weight := weight_at(config.output, step):
            yield "output", weight, l2(output, networks.student.output_of(target, t))
        if weight := weight_at(config.task, step):
            yield "task", weight, l2(output, networks.student.output_of(Prediction(latents, noise), t))
        if self.hints:  # a guided teacher computes both branches in one batch, the conditional one first
            teacher_features = [teacher_maps[path][: len(latents)] for path in teacher_paths]
            student_features = self.regressors([student_maps[path] for path in student_paths])
            yield from feature_terms(config.features, step, student_features, teacher_features)
            sizes = [features[0, 0].numel() for features in teacher_features]
            middle = len(sizes) // 2 if min(sizes) == max(sizes) else sizes.index(min(sizes))
            embeddings = (features[middle].float().mean((2, 3)) for features in (student_features, teacher_features))
            yield from relation_terms(config.relations, step, *embeddings)


class CompressionRecipe(Recipe):
    """One stage; its student needs as many steps as its teacher. It may also precede another method (`first_stage`)."""

    name = section = "compression"
    Config = CompressionConfig
    summary = "A smaller network for the same number of steps; --compress makes it the first stage of another method"
    supports = Supports(lora=False, planning=False)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        if not config.compression_options:
            raise ValueError(
                "compress: --method compression expects one of --compress 2, compress.blocks, compress.student_config"
            )

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        trainer = context.config.trainer
        yield Stage(self._method(context), trainer, steps=context.config.steps, solvers=["ddim"])

    def first_stage(self, context: DenoiserContext) -> Stage:
        """The stage before those of another method; its student is saved in `compressed`."""
        trainer, steps = first_trainer(context.config), context.config.compression.steps
        return Stage(self._method(context), trainer, "compressed", "stages/compression", steps=[steps], solvers=["ddim"])

    def _method(self, context: DenoiserContext) -> Compression:
        config, teacher, settings = context.config, context.teacher, context.config.compression
        pruning = pruning_for(teacher.network, context.family)
        student = pruning.pruned(compressed_config(pruning, config.compress), partial(_prediction, context))
        networks = replace(context, start=teacher.with_network(student.network)).networks()
        requested = any(getattr(settings.features, name) != 0 for name in FEATURE_LOSSES)
        requested |= any(getattr(settings.relations, name) != 0 for name in RELATION_LOSSES)
        chosen = settings.features.layers or student.ends
        hints = matched_blocks(pruning, student.network.config, chosen) if requested else []
        guidance = Guidance(context.unconditional, config.guidance)
        return Compression(networks, guidance, settings, hints)


def first_outline(config: RunConfig) -> StageOutline:
    """The outline of the stage before those of another method."""
    return StageOutline("compression", first_trainer(config), "compressed")


def first_trainer(config: RunConfig) -> TrainerConfig:
    """The trainer's settings for the stage before those of another method."""
    return config.trainer.updated(config.compression.trainer, "compression.trainer")


def check_compression(config: RunConfig, recipe: Recipe) -> None:
    """Raise ValueError where the settings of `compress` are incompatible with the method of a denoiser or an autoencoder."""
    requested, known = (
        config.compression_options,
        {"factor", "blocks", "student_config"} if recipe.supports.compression else set(),
    )
    if requested - known:
        expected = ", ".join(f"compress.{name}" for name in sorted(known)) or recipe.size_settings
        raise ValueError(f"compress.{min(requested - known)}: --method {config.method} expects {expected}")
    if "student_config" in requested and len(requested) > 1:
        raise ValueError("compress.student_config: expects neither compress.factor nor compress.blocks with it")
    if requested and config.lora.enabled:
        raise ValueError(
            "lora.enabled: a smaller network has weights of its own; expects false with compress (a LoRA of it is another run, "
            "with the smaller student as the teacher)"
        )
    if requested:
        first_trainer(config)


def pruning_for(network: Any, family: Family) -> DenoiserPruning:
    """The pruning of a teacher's network, whose costs are those of images of its default size.

    Raises:
        ValueError: the network is of a kind that cannot be pruned.
    """
    if (pruning := pruning_of(network, partial(inputs_of_default_size, family))) is None:
        raise ValueError(
            f"compress: got a teacher whose network is a {type(network).__name__}; expects a UNet2DConditionModel or a "
            "transformer whose config has the number of its blocks"
        )
    return pruning


def macs_fraction(family: Family, teacher: Any, student: Any) -> float:
    """The multiply-accumulates of a call of the student's network, as a fraction of the teacher's.

    It is 1 for networks of different classes, and for those that cannot be pruned.
    """
    pruning = pruning_of(teacher, partial(inputs_of_default_size, family)) if type(teacher) is type(student) else None
    return 1.0 if pruning is None else pruning.macs(student.config) / pruning.macs(teacher.config)


def compressed_config(pruning: DenoiserPruning, compress: CompressConfig) -> dict[str, Any]:
    """The diffusers config of the student by the settings `compress`, derived from the config of its teacher.

    Raises:
        ValueError: the network cannot be made so small, or the user's config is not valid.
    """
    if compress.student_config is not None:
        return {**pruning.network.config, **read_arguments(compress.student_config, "compress.student_config")}
    if compress.factor is not None:
        return pruning.smaller_config(compress.factor, compress.blocks)
    return pruning.fewer_blocks_config()


def matched_blocks(pruning: DenoiserPruning, student: Mapping[str, Any], chosen: Mapping[str, str] | None = None) -> list[Hint]:
    """Pairs of blocks of the teacher and of a student of a config whose feature maps are matched: by size and depth
    (`paired_blocks`), or as `chosen`.

    Raises:
        ValueError: a chosen block does not exist, or two chosen blocks have maps of different sizes.
    """
    teacher_shapes, student_shapes = (
        shapes_of_blocks(pruning.on_meta(config), pruning.inputs(config)) for config in (pruning.network.config, student)
    )
    sizes = ({name: shape[1:] for name, shape in shapes.items()} for shapes in (teacher_shapes, student_shapes))
    pairs = paired_blocks(*sizes) if chosen is None else list(chosen.items())
    for teacher_block, student_block in pairs:
        for name, shapes, network in ((teacher_block, teacher_shapes, "teacher"), (student_block, student_shapes, "student")):
            if name not in shapes:
                raise ValueError(
                    f"compression.features.layers {name}: expects a block of the {network}, one of {', '.join(shapes)}"
                )
        if teacher_shapes[teacher_block][1:] != student_shapes[student_block][1:]:
            raise ValueError(
                f"compression.features.layers {teacher_block}: {student_block} has maps of another size; expects blocks whose "
                "maps are of the same size"
            )
    return [Hint(one, other, teacher_shapes[one], student_shapes[other]) for one, other in pairs]


def inputs_of_default_size(family: Family, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a network of a family for one sample, on the meta device."""
    size = config.get("sample_size") or DEFAULT_SIZE
    return family.example_inputs(config, 1, (size, size) if isinstance(size, int) else tuple(size), torch.float32)


@torch.no_grad()
def _prediction(context: DenoiserContext) -> Tensor:
    """The output (B, C, h, w) of the teacher's network for noisy data, at times spread evenly over all."""
    examples, teacher = context.examples, context.teacher
    assert examples is not None
    count, total = len(examples.latents), teacher.schedule.num_train_timesteps
    noise = PerSampleRandom(context.config.seed, 0, 0, count).normal(examples.latents.shape[1:])
    t = ((torch.arange(count) + 0.5) * total / count).long().to(examples.latents.device)
    x_t = teacher.schedule.add_noise(examples.latents, noise.to(examples.latents), t)
    return teacher.output_of(teacher(x_t, t, examples.conditioning), t)
