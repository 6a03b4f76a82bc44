"""Construction of `GanCodistillation`: pairs of generator and discriminator, matched layers and the perceptual network."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import nn

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.architectures import discriminator_for
from gendistill.gan.discriminator import Discriminator, adapt
from gendistill.gan.gan_folder import Gan
from gendistill.gan.gan_networks import GanNetworks, StudentWithFeatures, gan_networks
from gendistill.gan.generator import Generator, prefer_channels_last
from gendistill.gan.perception import Perception, open_perception
from gendistill.losses.terms import FEATURE_LOSSES, RELATION_LOSSES
from gendistill.methods.gan_codistillation import GanCodistillation, GanPair
from gendistill.methods.gan_config import CodistillationConfig
from gendistill.methods.gan_start import Start, start_student
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.networks.hints import Hint, Regressors, candidates, describe, match

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorContext:
    """The inputs of the stages of a GAN's method.

    Attributes:
        config: the settings of the run.
        teacher: the opened teacher.
        start: the initial student.
        data: real images, or `NoData`.
        device: device of the training.
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
    summary = "A smaller generator, trained with a discriminator on data and on both networks of its teacher"
    teaches = "generator"
    student = "a GAN student"
    supports = Supports(lora=False, compression=False, full_weights=False, gradient_checkpointing=False, planning=False)
    default_teacher = "assets/tiny-gan"

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        if config.compress.blocks:
            raise ValueError("compress.blocks: is for diffusion models; expects compress.factor for a GAN")
        super().check(config, teacher)
        if config.dtype != "float32":
            raise ValueError(
                f"dtype {config.dtype}: expects float32 for a GAN teacher; trainer.mixed_precision=bf16 is for training"
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
        ValueError: a requested loss needs a network or data that are not available.
    """
    settings, spec = config.gan, teacher.generator.spec
    second_student = None
    if settings.peer == "student":  # before the teacher is moved to its device: pruning runs on the CPU
        second_student = start_student(teacher, config.compress, data, config.seed + 1, "random").network.to(device)
    for network in (teacher.generator.network, teacher.discriminator, start.network):
        if network is not None:
            network.to(device)
    teacher.generator.network.requires_grad_(False)
    hints = _hints(config, teacher, start, device)
    networks = gan_networks(teacher.generator, start.network, hints)
    networks.student.to(device)
    initial = _teacher_discriminator(teacher, config)
    frozen = initial and initial.with_network(copy.deepcopy(initial.network).eval().requires_grad_(False))
    pairs = _pairs(config, networks, second_student, hints, initial, data, device)
    trained_further = next((pair.unwrapped_discriminator for pair in pairs if not pair.distils), None)
    example = torch.zeros(1, *spec.output_shape, device=device)
    # of the frozen discriminator, since the distance must not change in training
    perception = _perception(config, teacher.generator, frozen, example)
    method = GanCodistillation(
        networks,
        hints,
        pairs,
        settings,
        teacher_discriminator=trained_further or frozen,
        perception=perception,
        real=_real(config, teacher.generator, data),
    )
    inputs = tuple(tensor.to(device) for tensor in teacher.generator.example(2))
    labels = torch.arange(2, device=device) % spec.num_classes if spec.num_classes else None
    for pair in pairs:
        prefer_channels_last(pair.network, partial(pair.network, *inputs))
    prefer_channels_last(networks.average.network, partial(networks.average, *inputs))
    for discriminator in (*(pair.discriminator for pair in pairs), frozen):
        if discriminator is not None:
            prefer_channels_last(discriminator.network, partial(discriminator, example.expand(2, -1, -1, -1), labels))
    return method


def _pairs(
    config: RunConfig,
    networks: GanNetworks,
    second_student: nn.Module | None,
    hints: list[Hint],
    teacher_discriminator: Discriminator | None,
    data: ImageData | NoData,
    device: torch.device | str,
) -> list[GanPair]:
    """The student's pair, and that of its peer."""
    teacher, adversarial = networks.teacher, config.gan.adversarial != 0

    def against(generator: Generator, *, inherit: bool = config.gan.discriminator.inherit) -> Discriminator | None:
        initial = teacher_discriminator if inherit else None
        return _discriminator_for(generator, initial, device) if adversarial else None

    pairs = [GanPair("student", networks.student, against(networks.average))]
    if second_student is not None:
        generator = teacher.with_network(_trainable(second_student))
        paths = [hint.student_path for hint in hints]  # the layers of both students have the same names and channels
        peer = StudentWithFeatures(generator, paths, Regressors(hints)).to(device)
        pairs.append(GanPair("peer", peer, against(generator)))
    if config.gan.peer == "teacher":
        if isinstance(data, NoData) or not adversarial:
            raise ValueError("gan.peer teacher: trains the teacher further; expects data.path, and gan.adversarial above 0")
        _trainable(teacher.network)
        peer = StudentWithFeatures(teacher, [hint.teacher_path for hint in hints])
        pairs.append(GanPair("teacher", peer, against(teacher, inherit=True), distils=False))
    return pairs


def _discriminator_for(generator: Generator, initial: Discriminator | None, device: torch.device | str) -> Discriminator:
    """A trained discriminator: a copy of `initial`, or else a random network of about the size of the generator."""
    if initial is not None:
        return initial.with_network(_trainable(copy.deepcopy(initial.network)))
    random_network: Any = discriminator_for(generator)
    return adapt(_trainable(random_network).to(device), generator.spec)


def _trainable(network: nn.Module) -> nn.Module:
    return network.float().train().requires_grad_(True)


def _teacher_discriminator(teacher: Gan, config: RunConfig) -> Discriminator | None:
    if teacher.discriminator is None or config.generator.discriminator == "fresh":
        return None
    return adapt(teacher.discriminator, teacher.generator.spec)


def _real(config: RunConfig, teacher: Generator, data: ImageData | NoData) -> str:
    """The source of the real images of the discriminators."""
    no_data = isinstance(data, NoData)
    real = config.gan.discriminator.real or ("teacher" if no_data or teacher.spec.kind == "image" else "data")
    if real != "teacher" and no_data:
        raise ValueError(
            f"gan.discriminator.real {real}: expects data.path; without data the teacher's images are the real ones"
        )
    return real


def _hints(config: RunConfig, teacher: Gan, start: Start, device: torch.device | str) -> list[Hint]:
    """The pairs of matched layers, which are printed; empty where no loss needs feature maps, or the teacher has none."""
    settings = config.gan.features
    if all(getattr(settings, name) == 0 for name in FEATURE_LOSSES):
        return []
    example = tuple(tensor.to(device) for tensor in teacher.generator.example(2))
    if settings.layers is None and not candidates(teacher.generator.network, example):
        logger.warning("gan.features is ignored: the teacher has no layers with feature maps (B, C, H, W), as a transformer")
        return []
    hints = match(teacher.generator.network, start.network, example, settings.layers)
    if PartialState().is_main_process:
        print(f"matched layers:\n{describe(hints)}", file=sys.stderr)
    return hints


def _perception(
    config: RunConfig, teacher: Generator, discriminator: Discriminator | None, example: torch.Tensor
) -> Perception | None:
    """The perceptual network, where a loss needs one and there is one."""
    settings = config.gan
    if settings.output.perceptual == 0 and all(getattr(settings.relations, name) == 0 for name in RELATION_LOSSES):
        return None
    perception = open_perception(settings.output.perceptual_network, teacher.spec, discriminator, example)
    if perception is None and settings.output.perceptual != 0:
        logger.warning("gan.output.perceptual is ignored: the teacher has no discriminator to extract features with")
    return perception
