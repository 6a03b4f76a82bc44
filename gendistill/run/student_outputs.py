"""The forms in which a denoiser's student is written: what was trained, or a LoRA of the teacher or of its original."""

from __future__ import annotations

from collections.abc import Sequence

from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import AVERAGE, Networks
from gendistill.export.low_rank import LoraStudent, factorised_student, require_rank
from gendistill.methods import RunConfig
from gendistill.methods.lora_checks import LORA_OUTPUTS
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.loras import adapts_text_encoders
from gendistill.samplers.weighted_lora import WeightedLora


def require_output(config: RunConfig, teacher: Teacher, loras: Sequence[WeightedLora]) -> None:
    """Raise ValueError, before training, where the student cannot be written in the form `config.output`."""
    if config.output not in LORA_OUTPUTS:
        return
    if config.output == "base-lora":
        for lora in (lora for lora in loras if adapts_text_encoders(lora.path)):
            raise ValueError(
                f"output base-lora: {lora.path} adapts text encoders, too, which the LoRA of a student does not; expects "
                "output=folder, or output=steps-lora to be used with that file"
            )
    if not config.lora.enabled or (config.output == "base-lora" and loras):
        require_rank(teacher.network, teacher.family.lora_targets, config.lora.rank)


def lora_student(config: RunConfig, teacher: Teacher, networks: Networks) -> LoraStudent | None:
    """The LoRA that `config.output` requests; None for the student as it was trained, and for a folder."""
    if config.output not in LORA_OUTPUTS:
        return None
    on_original = config.output == "base-lora" and bool(config.teacher_loras)
    if config.lora.enabled and not on_original:
        return LoraStudent(teacher.pipeline, AVERAGE)
    original = None
    if on_original:
        original = open_pipeline(config.teacher, config=config.teacher_config, revision=config.teacher_revision)
        original.to(teacher.pipeline.device)
    return factorised_student(teacher, networks.average.network, config.lora.rank, original)
