"""A teacher folder in, a student folder out."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from torchvision.utils import make_grid, save_image

import gendistill
from gendistill.config import DistillConfig, save_config
from gendistill.data.batches import LatentData
from gendistill.data.encode import prepare_data, training_prompts, weights_fingerprint
from gendistill.diffusion.families import Family
from gendistill.diffusion.networks import GUIDANCE_EMBEDDING, Networks, full_networks, lora_networks
from gendistill.diffusion.pipeline import Teacher, load_teacher
from gendistill.export.student import export_student, student_pipeline
from gendistill.failures import told_in_a_sentence
from gendistill.judge import Judge, build_judge, teacher_judge
from gendistill.methods.consistency import ConsistencyDistillation
from gendistill.progress import advancing_bar
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.schedulers import solver_eta, student_scheduler
from gendistill.training.checkpoint import Checkpoints
from gendistill.training.processes import gathered, join_processes, share
from gendistill.training.trainer import Trainer, TrainingResult, Validation

GRID_PICTURES = 32


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
        embedded = config.consistency.guidance == "embedded"
        networks = full_networks(teacher.denoiser, GUIDANCE_EMBEDDING if embedded else None)
    method = ConsistencyDistillation(networks, teacher.unconditional(), config.consistency)
    with advancing_bar("encoding") as progress:
        data = prepare_data(config.data, teacher, config.seed, progress)
    with processes.local_main_process_first():  # which reads the reference for the others of its machine
        judge = _judge(config, teacher, data)
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    validator = _Validator(config, teacher, networks, judge, run / "samples")
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
    asked = config.consistency.model_fields_set
    if (config.consistency.guidance_scale > 1 and "guidance_scale" in asked) or config.consistency.guidance != "baked":
        raise ValueError(f"consistency.guidance: {kind} knows no guidance; takes 'baked' with a guidance_scale of 1")
    return config.model_copy(update={"consistency": config.consistency.model_copy(update={"guidance_scale": 1.0})})


class _Validator:
    """Judges the average at every step count with every solver in question, and draws a grid at fixed seeds."""

    def __init__(self, config: DistillConfig, teacher: Teacher, networks: Networks, judge: Judge, samples: Path) -> None:
        self.config, self.teacher, self.networks, self.judge, self.samples = config, teacher, networks, judge, samples
        samples.mkdir(exist_ok=True)

    def __call__(self, step: int) -> Validation:
        """The score of a checkpoint: the best solver's distance, averaged over the step counts. Processes share the drawing."""
        sampler = FewStepSampler(student_pipeline(self.teacher, self.networks))
        distances: dict[str, dict[str, float]] = {}
        for solver in self.config.solvers:
            sampler.pipeline.scheduler = scheduler_of(solver, self.config, self.teacher)
            sampler.eta = solver_eta(solver)
            distances[solver] = {}
            for count in self.config.steps:
                if count == 1 and solver != self.config.solvers[0]:
                    distances[solver]["1"] = distances[self.config.solvers[0]]["1"]  # one step knows no solver
                    continue
                mine = self.judge.of(share(len(self.judge.prompts)))
                pictures = mine.draw(sampler, count, pipeline_guidance_scale(self.config))
                pictures = gathered(pictures, len(self.judge.prompts))
                distances[solver][str(count)] = self.judge.scores(pictures)[self.judge.metric]
                if count == self.config.steps[0]:
                    grid = make_grid(pictures[:GRID_PICTURES].float() / 255, nrow=8)
                    save_picture(grid, self.samples / f"step-{step:06d}-{solver}-{count}.png")
        means = {solver: sum(of.values()) / len(of) for solver, of in distances.items()}
        best = min(means, key=lambda solver: means[solver])
        return Validation(means[best], {"solver": best, self.judge.metric: distances})


def _judge(config: DistillConfig, teacher: Teacher, data: LatentData) -> Judge:
    """Real pictures to validate against where the run has any, else the teacher's own; other seeds than an evaluation's."""
    reference, num, seed = config.validation_reference or config.data.path, config.trainer.num_validation, 1_000 + config.seed
    if reference is None:
        prompts = training_prompts(config.data, teacher).prompts
        return teacher_judge(data, teacher.codec, prompts, num=num, seed=seed, extractor=config.validation_extractor)
    is_data = reference == config.data.path
    with advancing_bar("reading the reference") as progress:
        judge = build_judge(
            reference,
            caption=config.data.caption,
            num=num,
            seed=seed,
            extractor=config.validation_extractor,
            cache=config.data.cache,
            image_column=config.data.image_column if is_data else None,
            split=config.data.split if is_data else None,
            progress=progress,
        )
    return judge.first(num)


def scheduler_of(solver: str, config: DistillConfig, teacher: Teacher) -> Any:
    """The stock scheduler that samples the student by `solver`."""
    return student_scheduler(
        solver,
        teacher.pipeline.scheduler.config,
        teacher.denoiser.prediction_type,
        config.consistency.num_ddim_timesteps,
        bounded=teacher.drawing.bounded,
    )


def _specify(config: DistillConfig, teacher: Teacher, training: TrainingResult) -> tuple[StudentSpec, Any]:
    """How the student is sampled: the solver that validated best, as a stock diffusers scheduler."""
    assert training.best is not None  # the validator has judged at least the start
    solver = training.best.figures["solver"]
    settings = config.consistency
    scheduler = scheduler_of(solver, config, teacher)
    spec = StudentSpec(
        method=config.method,
        teacher=config.teacher,
        num_inference_steps=tuple(config.steps),
        solver=solver,
        scheduler_class=type(scheduler).__name__,
        scheduler_config={name: value for name, value in scheduler.config.items() if not name.startswith("_")},
        guidance=settings.guidance,
        guidance_scale=settings.guidance_scale,
        guidance_range=settings.guidance_range if settings.guidance == "embedded" else None,
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


def pipeline_guidance_scale(config: DistillConfig) -> float:
    """What the student's pipeline is called with."""
    return 1.0 if config.consistency.guidance == "baked" else config.consistency.guidance_scale


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) in [0, 1], whole or not at all; one process does."""
    if PartialState().is_main_process:
        aside = path.with_name(f".{path.name}")
        save_image(picture, aside, format="png")
        os.replace(aside, path)


def make_folder(path: Path) -> Path:
    """The folder `path`, made where it is not there; ValueError where nothing can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except FileExistsError as error:
        raise ValueError(f"out {path} cannot be made a folder: {error.strerror}") from error
    except OSError as error:
        raise ValueError(f"out {path} cannot be written to: {(error.strerror or str(error)).lower()}") from error
    return path


def usable_device(device: str | None) -> str:
    """`device`, or the best one that is there for None; ValueError where torch cannot use it."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used here; takes cuda, mps or cpu") from error
    return device or best_device()


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
