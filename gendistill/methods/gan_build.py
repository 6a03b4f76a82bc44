"""From a teacher and a student's start to the method with all its networks: who plays, against whom, and who looks on."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import nn

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.architectures import discriminator_for
from gendistill.gan.discriminator import Discriminator, adapt
from gendistill.gan.gan_folder import Gan
from gendistill.gan.gan_networks import GanNetworks, StudentWithFeatures, gan_networks
from gendistill.gan.generator import FASTEST, Generator
from gendistill.gan.perception import Perception, open_perception
from gendistill.losses.terms import FEATURE_LOSSES, RELATION_LOSSES
from gendistill.methods.gan_codistillation import CodistillationConfig, GanCodistillation, GanPair
from gendistill.methods.gan_start import Start, start_student
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.networks.hints import Hint, Regressors, describe, match
from gendistill.settings.schedule import in_steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorContext:
    """What the stages of a GAN's method are made of.

    Attributes:
        config: of the run.
        teacher: as it was opened.
        start: the student before its first step.
        data: real images, or none.
        device: of the training.
    """

    config: RunConfig
    teacher: Gan
    start: Start
    data: ImageData | NoData
    device: torch.device


class GanRecipe(Recipe):
    """One stage: a small generator and its discriminator."""

    name = section = "gan"
    Config = CodistillationConfig
    summary = "a smaller generator and its discriminator, from data and from the teacher's both networks"
    teaches = "generator"
    student = "a GAN student"
    supports = Supports(lora=False, compression=False, full_weights=False, gradient_checkpointing=False, planning=False)
    default_teacher = "assets/tiny-gan"

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        if config.compress.blocks:
            raise ValueError("compress.blocks: is of a diffusion model; a GAN takes compress.factor")
        super().check(config, teacher)
        if config.dtype != "float32":
            raise ValueError(
                f"dtype {config.dtype}: a GAN teacher stays in float32; trainer.mixed_precision=bf16 is for training"
            )

    def data_needs(self, config: RunConfig) -> Literal["images"]:
        return "images"

    def stages(self, context: GeneratorContext) -> Iterator[Stage]:
        config = context.config
        yield Stage(build_method(config, context.teacher, context.start, context.data, context.device), config.trainer)


def build_method(
    config: RunConfig, teacher: Gan, start: Start, data: ImageData | NoData, device: torch.device | str
) -> GanCodistillation:
    """The method with all its networks on a device.

    Raises:
        ValueError: a loss is asked for that the teacher cannot give.
    """
    settings, spec = in_steps(config.gan, config.trainer.max_steps), teacher.generator.spec
    second_student = None
    if settings.peer == "student":  # before the teacher goes to its device: pruning works on the CPU
        second_student = start_student(teacher, config.compress, data, config.seed + 1, "random").network.to(device)
    for network in (teacher.generator.network, teacher.discriminator, start.network):
        if network is not None:
            network.to(device)
    teacher.generator.network.requires_grad_(False)
    hints = _hints(config, teacher, start, device)
    networks = gan_networks(teacher.generator, start.network, hints)
    networks.student.to(device)
    theirs = _of_teacher(teacher, config)
    frozen = theirs and theirs.with_network(copy.deepcopy(theirs.network).eval().requires_grad_(False))
    pairs = _pairs(config, networks, second_student, hints, theirs, data, device)
    goes_on = next((pair.plain_discriminator for pair in pairs if not pair.distils), None)
    example = torch.zeros(1, *spec.output_shape, device=device)
    perception = _perception(config, teacher.generator, frozen, example)  # which stays as it is: what learns is no measure
    method = GanCodistillation(
        networks,
        hints,
        pairs,
        settings,
        teacher_discriminator=goes_on or frozen,
        perception=perception,
        real=_real(config, teacher.generator, data),
    )
    placed = [*method.trained_modules().values(), networks.average.network]
    for module in [*placed, frozen.network] if frozen else placed:
        module.to(memory_format=FASTEST)
    return method


def _pairs(
    config: RunConfig,
    networks: GanNetworks,
    second_student: nn.Module | None,
    hints: list[Hint],
    theirs: Discriminator | None,
    data: ImageData | NoData,
    device: torch.device | str,
) -> list[GanPair]:
    """The student, and who else learns."""
    teacher, adversarial = networks.teacher, config.gan.adversarial != 0

    def against(generator: Generator, *, inherit: bool = config.gan.discriminator.inherit) -> Discriminator | None:
        return _discriminator_of(generator, theirs if inherit else None, device) if adversarial else None

    pairs = [GanPair("student", networks.student, against(networks.average))]
    if second_student is not None:
        of_second_student = teacher.with_network(_learning(second_student))
        student_with_features = StudentWithFeatures(
            of_second_student, [hint.student_path for hint in hints], Regressors(hints)
        ).to(device)  # as wide as the student
        pairs.append(GanPair("peer", student_with_features, against(of_second_student)))
    if config.gan.peer == "teacher":
        if isinstance(data, NoData) or not adversarial:
            raise ValueError("gan.peer teacher: goes on learning, which expects data.path and gan.adversarial above 0")
        _learning(teacher.network)
        student_with_features = StudentWithFeatures(teacher, [hint.teacher_path for hint in hints])
        pairs.append(GanPair("teacher", student_with_features, against(teacher, inherit=True), distils=False))
    return pairs


def _discriminator_of(generator: Generator, theirs: Discriminator | None, device: torch.device | str) -> Discriminator:
    """One that learns: the teacher's as it is where there is one, else a fresh one about as large as the generator."""
    if theirs is not None:
        return theirs.with_network(_learning(copy.deepcopy(theirs.network)))
    fresh: Any = discriminator_for(generator)
    return adapt(_learning(fresh).to(device), generator.spec)


def _learning(network: nn.Module) -> nn.Module:
    return network.float().train().requires_grad_(True)


def _of_teacher(teacher: Gan, config: RunConfig) -> Discriminator | None:
    if teacher.discriminator is None or config.generator.discriminator == "fresh":
        return None
    return adapt(teacher.discriminator, teacher.generator.spec)


def _real(config: RunConfig, teacher: Generator, data: ImageData | NoData) -> str:
    """What is real to the discriminators."""
    nothing = isinstance(data, NoData)
    real = config.gan.discriminator.real or ("teacher" if nothing or teacher.spec.kind == "image" else "data")
    if real != "teacher" and nothing:
        raise ValueError(
            f"gan.discriminator.real {real}: expects data.path; without data the teacher's images are the real ones"
        )
    return real


def _hints(config: RunConfig, teacher: Gan, start: Start, device: torch.device | str) -> list[Hint]:
    """The layers that are matched, told; none where no loss looks at them."""
    settings = config.gan.features
    asked = [name for name in FEATURE_LOSSES if getattr(settings, name) != 0]
    if not asked:
        return []
    example = tuple(tensor.to(device) for tensor in teacher.generator.example(2))
    hints = match(teacher.generator.network, start.network, example, settings.layers)
    if PartialState().is_main_process:
        print(f"layers that are matched:\n{describe(hints)}", file=sys.stderr)
    return hints


def _perception(
    config: RunConfig, teacher: Generator, discriminator: Discriminator | None, example: torch.Tensor
) -> Perception | None:
    settings = config.gan
    asked = settings.output.perceptual != 0 or any(getattr(settings.relations, name) != 0 for name in RELATION_LOSSES)
    if not asked:
        return None
    found = open_perception(settings.output.perceptual_network, teacher.spec, discriminator, example)
    if found is None and settings.output.perceptual != 0:
        logger.warning("gan.output.perceptual is left out: the teacher has no discriminator to look through")
    return found
