"""Distillation methods, each a function from a config and a teacher to the stages that are trained one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.int8_training import compute_as_int8
from gendistill.methods.compression import compression_stage
from gendistill.methods.consistency import consistency_stages
from gendistill.methods.latent_alignment import alignment_stages
from gendistill.methods.progressive import progressive_stages
from gendistill.methods.stage import Stage
from gendistill.run.config import DistillConfig
from gendistill.samplers.conditioning import Conditioning

Stages = Callable[[DistillConfig, Denoiser, Conditioning, Any], Iterator[Stage]]

METHODS: dict[str, Stages] = {
    "consistency": consistency_stages,
    "progressive": progressive_stages,
    "latent_alignment": alignment_stages,
}


def stages_of(config: DistillConfig, teacher: Denoiser, unconditional: Conditioning, start: Any = None) -> Iterator[Stage]:
    """All stages of a run: first the one that makes the network smaller, where that is asked for, then those of its method.

    Each begins where the one before has ended, which has to be trained before the next is asked for.

    Args:
        start: a network that the student begins from in place of the teacher's.
    """
    for stage in _stages_of(config, teacher, unconditional, start):
        if config.quantization == "int8":
            compute_as_int8(stage.method.networks.student.network)
            compute_as_int8(stage.method.networks.average.network)
        yield stage


def _stages_of(config: DistillConfig, teacher: Denoiser, unconditional: Conditioning, start: Any) -> Iterator[Stage]:
    if config.compresses:
        first = compression_stage(config, teacher, unconditional)
        yield first
        start = first.method.networks.average.network
    if config.method != "compression":
        yield from METHODS[config.method](config, teacher, unconditional, start)
