"""A teacher folder in, a student folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import PartialState

import gendistill
from gendistill.config import DistillConfig, save_config
from gendistill.data.encode import prepare_data, weights_fingerprint
from gendistill.diffusion.families import Family
from gendistill.diffusion.networks import GUIDANCE_EMBEDDING, Networks, full_networks, lora_networks
from gendistill.diffusion.pipeline import Teacher, load_teacher
from gendistill.export.student import export_student
from gendistill.failures import told_in_a_sentence
from gendistill.machine import make_folder, usable_device
from gendistill.methods.consistency import ConsistencyDistillation
from gendistill.methods.guidance import Guidance
from gendistill.progress import advancing_bar
from gendistill.samplers import StudentSpec
from gendistill.schedulers import solver_eta
from gendistill.training.checkpoint import Checkpoints
from gendistill.training.processes import join_processes
from gendistill.training.trainer import Trainer, TrainingResult
from gendistill.validation import Validator, scheduler_of, validation_judge


@dataclass(frozen=True)
class DistillResult:
    student_folder: Path
    spec: StudentSpec
    training: TrainingResult
    networks: Networks
    is_main_process: bool = True


def distill(config: DistillConfig, *, resume: bool = False) -> DistillResult:
    """Distill `config.teacher` and write `config.out`/student. Under `accelerate launch` all processes work on one student.

    Raises:
        ValueError: a setting, the teacher or the data cannot be used, memory or the disk ran out, or training went wrong; in
            one sentence.
        Stopped: SIGTERM or Ctrl-C came; there is a checkpoint to go on from.
    """
    run = make_folder(Path(config.out))
    if Checkpoints(run / "checkpoints").steps() and not resume:  # before the encoding, and before config.yaml is written
        raise ValueError(f"out {run} holds a run already; takes --resume, or another folder")
    processes = join_processes(config.trainer, usable_device(config.device))
    with told_in_a_sentence(config, processes.num_processes):
        return _distill(config, run, processes, resume)


def _distill(config: DistillConfig, run: Path, processes: PartialState, resume: bool) -> DistillResult:
    teacher = load_teacher(
        config.teacher,
        config=config.teacher_config,
        revision=config.teacher_revision,
        resolution=config.data.resolution if config.data.path else None,  # what a teacher paints has its own size
        dtype=getattr(torch, config.dtype),
        device=processes.device,
    )
    config = fitting(config, teacher.family, type(teacher.pipeline).__name__)
    torch.manual_seed(config.seed)  # adapters start at random
    if config.lora.enabled:
        networks = lora_networks(teacher.denoiser, config.lora.rank, config.lora.alpha)
    else:
        embedded = config.guidance.mode == "embedded"
        networks = full_networks(teacher.denoiser, GUIDANCE_EMBEDDING if embedded else None)
    method = ConsistencyDistillation(networks, Guidance(teacher.unconditional(), config.guidance), config.consistency)
    with advancing_bar("encoding") as progress:
        data = prepare_data(config.data, teacher, config.seed, progress)
    with processes.local_main_process_first():  # which reads the reference for the others of its machine
        judge = validation_judge(config, teacher, data)
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    validator = Validator(config, teacher, networks, judge, run / "samples")
    cpu = processes.device.type == "cpu"
    trainer = Trainer(method, data, config.trainer, run, seed=config.seed, validate=validator, cpu=cpu)
    training = trainer.train(resume=resume)
    spec, scheduler = _specify(config, teacher, training)
    if processes.is_main_process:
        export_student(
            run / "student",
            teacher,
            networks,
            spec,
            scheduler,
            _lineage(config, teacher, data.cache.provenance, training),
        )
    return DistillResult(run / "student", spec, training, networks, processes.is_main_process)


def fitting(config: DistillConfig, family: Family, pipeline_class: str) -> DistillConfig:
    """The config as its teacher can meet it: without classifier-free guidance every scale is 1.

    Raises:
        ValueError: guidance was asked for where there is none, or a LoRA where diffusers loads none.
    """
    kind = f"teacher {config.teacher} ({pipeline_class})"
    if config.lora.enabled and not family.lora:
        raise ValueError(f"lora.enabled: diffusers loads no LoRA into {kind}; takes the full mode")
    if family.drawing.guided:
        return config
    asked = config.guidance.model_fields_set
    if (config.guidance.scale > 1 and "scale" in asked) or config.guidance.mode != "baked":
        raise ValueError(f"guidance: {kind} knows no guidance; takes the mode 'baked' with a scale of 1")
    return config.model_copy(update={"guidance": config.guidance.model_copy(update={"scale": 1.0})})


def _specify(config: DistillConfig, teacher: Teacher, training: TrainingResult) -> tuple[StudentSpec, Any]:
    """How the student is sampled: the solver that validated best, as a stock diffusers scheduler."""
    assert training.best is not None  # the validator has judged at least the start
    solver = training.best.figures["solver"]
    settings = config.guidance
    scheduler = scheduler_of(solver, config, teacher)
    spec = StudentSpec(
        method=config.method,
        teacher=config.teacher,
        num_inference_steps=tuple(config.steps),
        solver=solver,
        scheduler_class=type(scheduler).__name__,
        scheduler_config={name: value for name, value in scheduler.config.items() if not name.startswith("_")},
        guidance=settings.mode,
        guidance_scale=settings.scale,
        guidance_range=settings.range if settings.mode == "embedded" else None,
        prediction_type=teacher.denoiser.prediction_type,
        lora=config.lora.enabled,
        eta=solver_eta(solver) if teacher.drawing.takes_eta else 0.0,
        teacher_config=config.teacher_config,
        teacher_revision=teacher.commit or config.teacher_revision,
        figures={"validation": training.best.score},
    )
    return spec, scheduler


def _lineage(config: DistillConfig, teacher: Teacher, data: dict[str, Any], training: TrainingResult) -> dict[str, Any]:
    return {
        **({"teacher commit": teacher.commit} if teacher.commit else {}),
        "teacher network": f"sha256 {weights_fingerprint(teacher.network)}",
        "data": data.get("described", "unknown"),
        "steps trained": f"{training.steps} at batch {config.trainer.batch_size}, best at {training.best_step}",
        "minutes": f"{training.seconds / 60:.1f}",
        "seed": config.seed,
        "versions": f"gendistill {gendistill.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}",
    }
