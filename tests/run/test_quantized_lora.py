"""A LoRA on a teacher whose weights are in 4 bits, without the text encoders in memory."""

import pytest
import torch
from tiny_runs import settings_of

from gendistill.run.config import load_config
from gendistill.run.denoisers import DenoiserRun
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler
from gendistill.samplers.quantization.small_weights import weight_quantization

IN_4_BITS = {"lora__enabled": True, "lora__rank": 4, "lora__quantization": "nf4-weights"}


def test_its_student_opens_on_the_teacher_with_all_bits(tiny_folder, tmp_path, monkeypatch):
    encoders = []
    stages = DenoiserRun.stages

    def watched(run):
        encoders.append(run.teacher.pipeline.text_encoder)
        return stages(run)

    monkeypatch.setattr(DenoiserRun, "stages", watched)
    config = settings_of(tmp_path, tiny_folder, "run", trainer__max_steps=2, trainer__gradient_checkpointing=True, **IN_4_BITS)
    result = distill(config)
    assert encoders == [None]  # in training
    assert weight_quantization(result.method.networks.teacher.network) == "nf4-weights"
    assert all(parameter.dtype == torch.float32 for parameter in result.method.networks.trained.values())
    student = FewStepSampler.from_pretrained(result.student_folder)
    assert student.quantization == "none"
    assert next(iter(student.images(["food"], [0]))).isfinite().all()


def test_weights_in_4_bits_are_not_trained_themselves(tiny_folder):
    settings = {"teacher": str(tiny_folder), "data.path": "images", "lora.quantization": "nf4-weights"}
    with pytest.raises(ValueError, match=r"quantized weights cannot be trained; expects lora\.enabled=true"):
        load_config(None, settings)
