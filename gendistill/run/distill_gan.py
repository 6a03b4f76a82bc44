"""A GAN teacher in, a student folder out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import gendistill
from gendistill.data.encode import weights_fingerprint
from gendistill.data.gan_batches import NoData, PictureData
from gendistill.data.gan_images import prepare_pictures
from gendistill.data.gan_pairs import paint_pairs
from gendistill.gan.gan_export import export_student
from gendistill.gan.gan_folder import Gan
from gendistill.gan.gan_loading import describe, open_teacher
from gendistill.gan.generator import FASTEST
from gendistill.methods.gan_build import build_method
from gendistill.methods.gan_codistillation import GanCodistillation
from gendistill.methods.gan_start import Start, start_student
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.run.config import DistillConfig, save_config
from gendistill.run.gan_validation import GeneratorValidator
from gendistill.runtime.device import make_folder
from gendistill.runtime.progress import advancing_bar
from gendistill.training.trainer import Trainer, TrainingData, TrainingResult


@dataclass(frozen=True)
class GeneratorResult:
    """A student GAN, and how it came to be."""

    student_folder: Path
    student: Gan
    start: Start
    training: TrainingResult
    method: GanCodistillation
    is_main_process: bool = True

    def describe(self) -> str:
        return f"{self.student_folder}: gan student; {self.start.describe()}"


def distill_generator(config: DistillConfig, run: Path, processes: PartialState, resume: bool) -> GeneratorResult:
    """Distill the GAN `config.teacher` and write `run`/student; see `gendistill.run.distill.distill`."""
    if config.lora.enabled:
        raise ValueError("lora.enabled: a GAN student has weights of its own; takes false")
    if config.dtype != "float32":
        raise ValueError(f"dtype {config.dtype}: a GAN teacher stays in float32; trainer.mixed_precision=bf16 is for training")
    device = processes.device
    teacher = open_teacher(config.teacher, config=config.teacher_config, settings=config.generator)
    _say(describe(teacher))
    teacher.generator.network.to(memory_format=FASTEST)
    with advancing_bar("reading the pictures") as progress:
        data = prepare_pictures(config.data, teacher.generator.spec, config.seed, progress)
    learned_on: TrainingData = data
    if config.gan.pairs:
        with advancing_bar("painting pairs") as progress:
            teacher.generator.network.to(device)
            learned_on = paint_pairs(teacher.generator, data, config.gan.pairs, config.data.cache, progress)
    torch.manual_seed(config.seed)  # fresh networks start at random
    with processes.local_main_process_first():
        start = start_student(teacher, config.compress, data, config.seed)
    _say(f"student: {start.describe()}")
    for layer, reason in start.kept_whole.items():
        _say(f"kept whole: {layer} ({reason})")
    method = build_method(config, teacher, start, data, device)
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    extractor = load_extractor(config.validation_extractor or "emoji", str(device))
    validator = GeneratorValidator(
        method,
        data,
        extractor,
        make_folder(run / "samples"),
        num=config.trainer.num_validation,
        seed=config.seed,
        device=device,
    )
    cpu = device.type == "cpu"
    trainer = Trainer(method, learned_on, config.trainer, run, seed=config.seed, validate=validator, cpu=cpu)
    training = trainer.train(resume=resume)
    student = _student(config, teacher, start, method, training)
    if processes.is_main_process:
        export_student(run / "student", student, _lineage(config, teacher, start, data, training))
    return GeneratorResult(run / "student", student, start, training, method, processes.is_main_process)


def _student(config: DistillConfig, teacher: Gan, start: Start, method: GanCodistillation, training: TrainingResult) -> Gan:
    """The average that validated best, with the discriminator as it was at the end."""
    assert training.best is not None  # the validator has judged at least the start
    told: dict[str, Any] = {
        "method": "gan",
        "teacher": config.teacher,
        "teacher_config": config.teacher_config,
        "generator": config.generator.model_dump(mode="json"),
        "compress": config.compress.factor,
        "macs": start.macs,
        "parameters": start.parameters,
        "teacher_macs": start.teacher_macs,
        "teacher_parameters": start.teacher_parameters,
        "figures": training.best.figures,
        "steps": training.steps,
    }
    method.networks.average.network.to(memory_format=torch.contiguous_format)  # as files hold it
    return Gan(method.networks.average, start.source, student=told)


def _lineage(
    config: DistillConfig, teacher: Gan, start: Start, data: PictureData | NoData, training: TrainingResult
) -> dict[str, Any]:
    described = (
        data.cache.provenance.get("described", "unknown") if isinstance(data, PictureData) else "none: the teacher's pictures"
    )
    return {
        "teacher": config.teacher,
        "teacher network": f"sha256 {weights_fingerprint(teacher.generator.network)}",
        "multiply-accumulates": f"{start.macs:,} a picture, the teacher's {start.teacher_macs:,}",
        "parameters": f"{start.parameters:,}, the teacher's {start.teacher_parameters:,}",
        "data": described,
        "steps trained": f"{training.steps} at batch {config.trainer.batch_size}, best at {training.best_step}",
        "minutes": f"{training.seconds / 60:.1f}",
        "seed": config.seed,
        "versions": f"gendistill {gendistill.__version__}, torch {torch.__version__}",
        **({"ended": training.ended} if training.ended else {}),
        **({name: f"{value:.4g}" for name, value in training.best.figures.items()} if training.best else {}),
    }


def _say(sentence: str) -> None:
    if PartialState().is_main_process:
        print(sentence, file=sys.stderr)
