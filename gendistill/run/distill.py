"""Distillation of a teacher into a student folder, with one driver for all methods."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState

from gendistill.methods import RunConfig, Stage, outline_of, recipe_of
from gendistill.methods.progressive import GUIDANCE_STAGE
from gendistill.run.autoencoders import AutoencoderRun
from gendistill.run.config import load_config
from gendistill.run.denoisers import DenoiserRun
from gendistill.run.failures import user_errors
from gendistill.run.generators import GeneratorRun
from gendistill.run.resuming import CONFIG, replacement_error, require_free, require_same_settings, write_config
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.extras import missing_extras_named
from gendistill.runtime.files import folder_lock
from gendistill.runtime.notebook import images_html, text_html
from gendistill.training.checkpoint import Checkpoints
from gendistill.training.method import Method
from gendistill.training.optimizers import require_optimizer
from gendistill.training.processes import join_processes
from gendistill.training.step import TrainingData
from gendistill.training.stopping import Stopped
from gendistill.training.trainer import OnValidation, Trainer, TrainingResult, Validate
from gendistill.training.trainer_config import TrainerConfig


class RunOfKind(Protocol):
    """Opens a kind of teacher, validates and exports its students. The constructor, called once per run, opens the teacher.

    Attributes:
        config: the settings, adapted to the teacher.
    """

    config: RunConfig

    @staticmethod
    def require_teacher(config: RunConfig) -> None:
        """Raise ValueError if the teacher is of another kind, as far as this is visible without opening it."""
        ...

    @staticmethod
    def describe(config: RunConfig) -> tuple[str, str, str]:
        """One line each on the teacher, the trained weights and the data, for a dry run. Loads no denoiser weights."""
        ...

    def prepare(self) -> None:
        """Read or compute the training data and the reference of the validation."""
        ...

    def stages(self) -> Iterator[Stage]: ...

    def data(self, stage: Stage) -> TrainingData: ...

    def validator(self, stage: Stage, samples: Path) -> Validate: ...

    def export(self, stage: Stage, training: TrainingResult, folder: Path) -> tuple[Any, str]:
        """Write the student of a trained stage to `folder`, atomically, in the main process. Returns its `StudentSpec`,
        `Gan` or `DecoderFigures`, and a short description."""
        ...


KINDS: dict[str, Callable[[RunConfig, PartialState], RunOfKind]] = {
    "denoiser": DenoiserRun,
    "generator": GeneratorRun,
    "autoencoder": AutoencoderRun,
}


@dataclass(frozen=True)
class DistillResult:
    """The student of a run, and the result of its training.

    Attributes:
        exported: the `StudentSpec` of a denoiser, a `Gan`, or the `DecoderFigures` of an autoencoder.
        description: a short description of the student.
        method: the method with its networks, whose EMA has the weights of the best checkpoint.
    """

    student_folder: Path
    exported: Any
    description: str
    training: TrainingResult
    method: Method
    is_main_process: bool = True

    @property
    def networks(self) -> Any:
        """The method's networks."""
        return self.method.networks

    def describe(self) -> str:
        return f"{self.student_folder}: {self.description}"

    def _repr_html_(self) -> str:
        """The same, with the samples of the last validation."""
        samples = [
            *self.student_folder.parent.glob("samples/*.png"),
            *self.student_folder.parent.glob("stages/*/samples/*.png"),
        ]
        return text_html(self.describe()) + images_html(sorted(samples, key=lambda file: file.stat().st_mtime)[-1:])


@missing_extras_named()
def distill(
    config: RunConfig | None = None,
    *,
    resume: bool = False,
    on_validation: OnValidation | None = None,
    minutes_left: Callable[[], float] | None = None,
    **settings: Any,
) -> DistillResult:
    """Distill a teacher and write a run folder with the student. Under `accelerate launch` all processes work on one run.

        distill(teacher="my-model", data={"path": "my-images"}, lora={"enabled": True}, out="runs/mine")

    Args:
        config: all settings, from `load_config`; the alternative is settings by name.
        on_validation: called with the state and the result of each validation of the student with the main step count; an
            exception that it raises ends the run, without a student.
        minutes_left: called when a stage begins; it trains no longer than that, even where `trainer.max_minutes` is more.

    Raises:
        ValueError: a setting, the teacher or the data cannot be used, memory or the disk is full, or training diverged; in one
            sentence.
        MissingExtraError: a package that this run needs is not installed.
        Stopped: SIGTERM or Ctrl-C stopped the run; the sentence has the command that resumes it.
    """
    if config is not None and settings:
        raise ValueError(f"distill: got a config and {', '.join(settings)}; expects one of them")
    config = load_config(None, settings) if config is None else config
    run = make_folder(Path(config.out).expanduser())
    require_free(run, resume)  # before the encoding, and before config.yaml is written
    kind: Any = KINDS[recipe_of(config).teaches]
    kind.require_teacher(config)
    device = usable_device(config.device)
    for outline in outline_of(config):  # what a later stage cannot do is reported before the first one
        require_optimizer(outline.trainer)
        processes = join_processes(outline.trainer, device)
    locked: AbstractContextManager[None] = folder_lock(run, "out") if processes.is_main_process else nullcontext()
    with user_errors(config, processes.num_processes), locked:
        try:
            result = _distill(kind(config, processes), run, processes, resume, on_validation, minutes_left)
        except KeyboardInterrupt as stop:
            processes.destroy_process_group()
            number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
            raise Stopped(f"{str(stop) or 'stopped'}; {_continued(config, run, processes)}", number) from stop
        processes.destroy_process_group()
        return result


def _continued(config: RunConfig, run: Path, processes: PartialState) -> str:
    """How a run that was stopped continues: the sentence has the command."""
    saved = run / CONFIG
    if not saved.exists():
        return f"training had not begun: repeat the command, which finds the data prepared so far in {config.data.cache}"
    program = ["gendistill"] if processes.num_processes == 1 else ["accelerate", "launch", "-m", "gendistill.cli"]
    return f"to resume, run: {shlex.join([*program, 'distill', '--config', str(saved), '--resume'])}"


def _limited(trainer: TrainerConfig, minutes: float) -> TrainerConfig:
    """The settings of a training that ends after some minutes, if not sooner; it makes one step even where none are left."""
    return trainer.model_copy(update={"max_minutes": max(0.001, min(minutes, trainer.max_minutes or minutes))})


def stage_folder(run: Path, folder: str) -> Path:
    """The folder of a stage in a run; a run of an earlier version resumes in the folder's former name."""
    former = {f"stages/{GUIDANCE_STAGE}": "stages/imitation"}.get(folder)
    return run / former if former is not None and (run / former).is_dir() else run / folder


def _distill(
    kind: RunOfKind,
    run: Path,
    processes: PartialState,
    resume: bool,
    on_validation: OnValidation | None,
    minutes_left: Callable[[], float] | None,
) -> DistillResult:
    config, main = kind.config, None
    if resume:
        require_same_settings(run, config)
    kind.prepare()
    torch.manual_seed(config.seed)  # initialisation of adapters and discriminators
    for number, stage in enumerate(kind.stages()):
        if processes.is_main_process and not number:
            write_config(run, config)
        folder = make_folder(stage_folder(run, stage.folder))
        if stage.student is not None and (run / stage.student).exists() and not Checkpoints(folder / "checkpoints").steps():
            raise replacement_error(run / stage.student)  # other stages do have checkpoints
        validate = kind.validator(stage, make_folder(folder / "samples"))
        cpu = processes.device.type == "cpu"
        limits = stage.trainer if minutes_left is None else _limited(stage.trainer, minutes_left())
        is_main = stage.student is not None and (not stage.steps or (stage.config or config).steps[0] in stage.steps)
        trainer = Trainer(
            stage.method,
            kind.data(stage),
            limits,
            folder,
            seed=config.seed + number,
            validate=validate,
            on_validation=on_validation if is_main else None,
            cpu=cpu,
        )
        training = trainer.train(resume=resume)
        if stage.student is None:
            continue
        exported, description = kind.export(stage, training, run / stage.student)
        if is_main:
            main = DistillResult(run / stage.student, exported, description, training, stage.method, processes.is_main_process)
    assert main is not None  # every method has a student of the main step count
    return main
