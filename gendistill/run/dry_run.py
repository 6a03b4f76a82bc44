"""Description of a run without executing it: no folder is created, and no denoiser weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendistill.methods import RunConfig, outline_of, recipe_of
from gendistill.run.distill import KINDS
from gendistill.run.resuming import require_free
from gendistill.training.checkpoint import Checkpoints
from gendistill.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class RunPlan:
    """Descriptions of the parts of a run, one line each."""

    teacher: str
    trains: str
    data: str
    steps: str
    checkpoints: str
    writes: str
    resume: str

    def lines(self) -> Iterator[str]:
        for name, text in vars(self).items():
            yield f"{name + ':':<13}{text}"


def dry_run(config: RunConfig, *, resume: bool = False) -> RunPlan:
    """The plan of `distill(config, resume=resume)`.

    Raises:
        ValueError: the teacher or the data do not exist or are not compatible with the settings, or the run folder holds a run
            and `resume` is False.
    """
    kind: Any = KINDS[recipe_of(config).teaches]
    kind.require_teacher(config)
    teacher, trains, data = kind.describe(config)
    trainer, run, outlines = config.trainer, Path(config.out).expanduser(), outline_of(config)
    lengths = [f"{stage.name}: {_length(stage.trainer)}" if stage.name else _length(stage.trainer) for stage in outlines]
    students = [str(run / stage.student) for stage in outlines if stage.student]
    minutes = f" or {trainer.checkpoint_minutes:g} minutes" if trainer.checkpoint_minutes else ""
    stages = "stages/ with " if len(outlines) > 1 else ""
    return RunPlan(
        teacher=teacher,
        trains=trains,
        data=data,
        steps="; ".join(lengths) + f"; a validation every {trainer.validate_every}",
        checkpoints=f"every {trainer.checkpoint_every} steps{minutes}, the last two and the best are kept",
        writes=f"{run}/config.yaml, {stages}log.jsonl, samples/, checkpoints/"
        f"{''.join(f', {name}/' for name in trainer.trackers)} and the student in {', '.join(students)}",
        resume=_resume(run, resume),
    )


def _length(trainer: TrainerConfig) -> str:
    until = f", at most {trainer.max_minutes:g} minutes" if trainer.max_minutes else ""
    samples = trainer.max_steps * trainer.batch_size
    return f"{trainer.max_steps} of batch {trainer.batch_size} ({samples:,} samples){until}"


def _resume(run: Path, resume: bool) -> str:
    """The checkpoint to resume from: the last one of the latest stage that has checkpoints."""
    require_free(run, resume)
    folders = [folder for folder in (run, *run.glob("stages/*")) if Checkpoints(folder / "checkpoints").steps()]
    if not folders:
        return "no checkpoint; starts at step 0"
    last = max(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime)
    name = Checkpoints(last / "checkpoints").steps()[-1]
    return f"resumes from {name}" + ("" if last == run else f" of stage {last.name}")
