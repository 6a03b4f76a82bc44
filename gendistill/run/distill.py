"""A teacher folder in, a student folder out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import PartialState

import gendistill
from gendistill.data.batches import LatentData
from gendistill.data.encode import prepare_data, training_texts, weights_fingerprint
from gendistill.data.trajectories import TrajectoryData, paint_trajectories
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.diffusion.trained_networks import Networks
from gendistill.evaluation.judge import Judge
from gendistill.export.student_folder import export_student
from gendistill.gan.folder import is_gan_folder
from gendistill.gan.gan_loading import TAKES
from gendistill.methods import stages_of
from gendistill.methods.aligning import align_stage
from gendistill.methods.compression import compressed_config
from gendistill.methods.consistency import require_grid
from gendistill.methods.stage import Stage
from gendistill.networks.classes import is_class_path
from gendistill.networks.pruning.unet import share_of_macs
from gendistill.run.config import DistillConfig, save_config
from gendistill.run.distill_decoder import DecoderResult, distill_decoder
from gendistill.run.distill_gan import GeneratorResult, distill_generator
from gendistill.run.failures import told_in_a_sentence
from gendistill.run.validation import Validator, scheduler_of, validation_judge
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import StudentSpec
from gendistill.samplers.families import Family, network_of
from gendistill.samplers.loading import open_student
from gendistill.schedulers import solver_eta
from gendistill.training.checkpoint import Checkpoints
from gendistill.training.processes import join_processes
from gendistill.training.stopping import Stopped
from gendistill.training.trainer import Trainer, TrainingResult


@dataclass(frozen=True)
class DistillResult:
    student_folder: Path
    spec: StudentSpec
    training: TrainingResult
    networks: Networks
    is_main_process: bool = True

    def describe(self) -> str:
        spec = self.spec
        return f"{self.student_folder}: {spec.method} student, sampled by {spec.solver}"


Result = DistillResult | GeneratorResult | DecoderResult
Run = Callable[[DistillConfig, Path, PartialState, bool], Result]


def distill(config: DistillConfig, *, resume: bool = False) -> Result:
    """Distill `config.teacher` and write `config.out`/student. Under `accelerate launch` all processes work on one student.

    Raises:
        ValueError: a setting, the teacher or the data cannot be used, memory or the disk ran out, or training went wrong; in
            one sentence.
        Stopped: SIGTERM or Ctrl-C came; there is a checkpoint to go on from.
    """
    run = make_folder(Path(config.out))
    if not resume and is_begun(run):  # before the encoding, and before config.yaml is written
        raise ValueError(f"out {run} holds a run already; takes --resume, or another folder")
    require_fitting_teacher(config)
    processes = join_processes(config.trainer, usable_device(config.device))
    with told_in_a_sentence(config, processes.num_processes):
        try:
            run_of: Run = OTHERS.get(config.method, _distill)
            result = run_of(config, run, processes, resume)
        except Stopped:
            processes.destroy_process_group()
            raise
        processes.destroy_process_group()
        return result


OTHERS: dict[str, Run] = {"gan": distill_generator, "decoder": distill_decoder}  # of what is no denoiser


def require_fitting_teacher(config: DistillConfig) -> None:
    """ValueError where the method is one for the other kind of teacher; told without opening it."""
    path = Path(config.teacher)
    is_gan, is_diffusion = is_gan_folder(path), (path / "model_index.json").is_file()
    if config.method == "gan" and is_diffusion:
        raise ValueError(f"teacher {config.teacher}: is a diffusion model; --method gan {TAKES}")
    if config.method != "gan" and (is_gan or is_class_path(config.teacher)):
        raise ValueError(
            f"teacher {config.teacher}: is a GAN, which --method {config.method} cannot distill; takes --method gan"
        )


def is_begun(run: Path) -> bool:
    """Whether a run folder holds checkpoints, of any stage."""
    return any(Checkpoints(folder).steps() for folder in (run / "checkpoints", *run.glob("stages/*/checkpoints")))


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
    if config.method == "consistency":
        require_grid(config.consistency, teacher.denoiser.schedule.num_train_timesteps)
    if config.compresses:
        compressed_config(teacher.network.config, config.compress)  # whether it can be, before anything is encoded
    stages = stages_of(config, teacher.denoiser, teacher.unconditional(), starting_network(config, teacher))
    with advancing_bar("encoding") as progress:
        data = prepare_data(config.data, teacher, config.seed, progress)
    learned_on: LatentData | TrajectoryData = data
    if config.aligns:
        with advancing_bar("painting trajectories") as progress:
            texts = partial(training_texts, config.data, teacher, data, config.seed)
            learned_on = paint_trajectories(
                teacher, data, config.align, config.guidance, config.data.cache, progress, texts=texts
            )
    with processes.local_main_process_first():  # which reads the reference for the others of its machine
        judge = validation_judge(config, teacher, data)
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    torch.manual_seed(config.seed)  # adapters start at random
    main: DistillResult | None = None
    for number, stage in enumerate(stages):
        if config.aligns and stage.student is not None and stage.method.name == config.method:
            align_stage(stage, config.align, teacher)
        on = learned_on if stage.data is None or isinstance(learned_on, LatentData) else stage.data(learned_on)
        trained = _train(stage, config.seed + number, config, teacher, on, judge, run, processes, resume)
        if trained is not None and config.steps[0] in trained.spec.num_inference_steps:
            main = trained
    assert main is not None  # every method makes a student of the main step count
    return main


def _train(
    stage: Stage,
    seed: int,
    config: DistillConfig,
    teacher: Teacher,
    data: LatentData | TrajectoryData,
    judge: Judge,
    run: Path,
    processes: PartialState,
    resume: bool,
) -> DistillResult | None:
    """Train a stage to its end and write its student, where it has one."""
    folder = make_folder(run / stage.folder)
    validator = Validator(config, teacher, stage, judge, folder / "samples")
    cpu = processes.device.type == "cpu"
    trainer = Trainer(stage.method, data, stage.trainer, folder, seed=seed, validate=validator, cpu=cpu)
    training = trainer.train(resume=resume)
    if stage.student is None:
        return None
    spec, scheduler = _specify(config, teacher, stage, training)
    if processes.is_main_process:
        lineage = _lineage(config, teacher, stage, data.described, training)
        export_student(run / stage.student, teacher, stage.method.networks, spec, scheduler, lineage)
    return DistillResult(run / stage.student, spec, training, stage.method.networks, processes.is_main_process)


def starting_network(config: DistillConfig, teacher: Teacher) -> Any:
    """The network of the student that `config.start` names; None where it names none.

    Raises:
        ValueError: it cannot be opened, or its network is of another kind than the teacher's.
    """
    if config.start is None:
        return None
    pipeline, spec = open_student(config.start)
    if spec is not None and spec.lora:
        raise ValueError(f"start {config.start}: is a LoRA; takes a student with all its weights")
    ours, theirs = network_of(pipeline).config, teacher.network.config
    for name in ("in_channels", "out_channels", "cross_attention_dim", "num_class_embeds"):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"start {config.start}: its network has {name} {ours.get(name)}; takes {theirs.get(name)}, the teacher's"
            )
    if spec is not None and spec.prediction_type != teacher.denoiser.prediction_type:
        raise ValueError(
            f"start {config.start}: predicts {spec.prediction_type}; takes a student that predicts "
            f"{teacher.denoiser.prediction_type}, as its teacher does"
        )
    return network_of(pipeline).to(teacher.pipeline.device)


def fitting(config: DistillConfig, family: Family, pipeline_class: str) -> DistillConfig:
    """The config as its teacher can meet it: without classifier-free guidance every scale is 1.

    Raises:
        ValueError: guidance was asked for where there is none, or a LoRA where diffusers loads none.
    """
    kind = f"teacher {config.teacher} ({pipeline_class})"
    if config.lora.enabled and not family.lora:
        raise ValueError(f"lora.enabled: diffusers loads no LoRA into {kind}; takes the full mode")
    if family.guided:
        return config
    asked = config.guidance.model_fields_set
    if (config.guidance.scale > 1 and "scale" in asked) or config.guidance.mode != "baked":
        raise ValueError(f"guidance: {kind} knows no guidance; takes the mode 'baked' with a scale of 1")
    return config.model_copy(update={"guidance": config.guidance.model_copy(update={"scale": 1.0})})


def _specify(config: DistillConfig, teacher: Teacher, stage: Stage, training: TrainingResult) -> tuple[StudentSpec, Any]:
    """How the student is sampled: by the solver that validated best."""
    assert training.best is not None  # the validator has judged at least the start
    solver = training.best.figures["solver"]
    settings = config.guidance
    prediction_type = stage.method.networks.average.prediction_type
    scheduler = scheduler_of(solver, config, teacher, stage)
    spec = StudentSpec(
        method=config.method,
        teacher=config.teacher,
        num_inference_steps=tuple(stage.steps),
        solver=solver,
        scheduler_class=type(scheduler).__name__,
        scheduler_config={name: value for name, value in scheduler.config.items() if not name.startswith("_")},
        guidance=settings.mode,
        guidance_scale=settings.scale,
        guidance_range=settings.range if settings.mode == "embedded" else None,
        prediction_type=prediction_type,
        lora=config.lora.enabled,
        quantization=config.quantization,
        eta=solver_eta(solver) if teacher.family.takes_eta else 0.0,
        teacher_config=config.teacher_config,
        teacher_revision=teacher.commit or config.teacher_revision,
        figures={"validation": training.best.score},
    )
    return spec, scheduler


def _lineage(config: DistillConfig, teacher: Teacher, stage: Stage, data: str, training: TrainingResult) -> dict[str, Any]:
    return {
        **({"teacher commit": teacher.commit} if teacher.commit else {}),
        **({"multiply-accumulates of a call": _share_of_macs(teacher, stage)} if config.compresses else {}),
        "teacher network": f"sha256 {weights_fingerprint(teacher.network)}",
        "data": data,
        "steps trained": f"{training.steps} at batch {stage.trainer.batch_size}, best at {training.best_step}",
        "minutes": f"{training.seconds / 60:.1f}",
        "seed": config.seed,
        "versions": f"gendistill {gendistill.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}",
    }


def _share_of_macs(teacher: Teacher, stage: Stage) -> str:
    share = share_of_macs(teacher.network.config, stage.method.networks.average.network.config)
    return f"{share:.3f} of the teacher's"
