"""The forms in which a denoiser's student is written: what was trained, or a LoRA of the teacher or of its original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import AVERAGE, Networks
from gendistill.export.low_rank import LoraStudent, factorised_student, require_rank
from gendistill.methods import RunConfig
from gendistill.methods.lora_checks import LORA_OUTPUTS
from gendistill.samplers.families import network_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.loras import encoder_matrices
from gendistill.samplers.weighted_lora import WeightedLora


def require_output(config: RunConfig, teacher: Teacher, loras: Sequence[WeightedLora]) -> None:
    """Raise ValueError, before training, where the student cannot be written in the form `config.output`."""
    if config.output not in LORA_OUTPUTS:
        return
    if not config.lora.enabled or (config.output == "base-lora" and loras):
        require_rank(teacher.network, teacher.family.lora_targets, config.lora.rank)


def lora_student(config: RunConfig, teacher: Teacher, networks: Networks) -> LoraStudent | None:
    """The LoRA that `config.output` requests; None for the student as it was trained, and for a folder."""
    if config.output not in LORA_OUTPUTS:
        return None
    on_original = config.output == "base-lora" and bool(config.teacher_loras)
    if config.lora.enabled and not on_original:
        return LoraStudent(teacher.pipeline, AVERAGE)
    if not on_original:
        return factorised_student(teacher, networks.average.network, config.lora.rank)
    dtype = next(teacher.network.parameters()).dtype
    original = open_pipeline(config.teacher, config=config.teacher_config, revision=config.teacher_revision, dtype=dtype)
    encoders = encoder_matrices(original, [WeightedLora.parse(text) for text in config.teacher_loras])
    network_of(original).to(teacher.pipeline.device)
    return replace(factorised_student(teacher, networks.average.network, config.lora.rank, original), encoders=encoders)
