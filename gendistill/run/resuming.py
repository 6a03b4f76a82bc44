"""What a run folder holds already: it is free, or its run is resumed with the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill.methods import RunConfig
from gendistill.run.config import HEADER, load_config, save_config
from gendistill.run.located_paths import located
from gendistill.runtime.files import holds_nothing, require_new, require_vacant
from gendistill.settings.kinds import written
from gendistill.settings.section import setting_names
from gendistill.training.checkpoint import Checkpoints

CONFIG, LOG = "config.yaml", "log.jsonl"
WRITTEN = (CONFIG, LOG, "checkpoints", "stages")  # files of a run that exist before its student
# Settings that a resumed run may change: limits, intervals, the machine. All others change what is trained or compared.
CHANGEABLE = (
    "out",
    "device",
    "data.cache",
    "trainer.max_steps",
    "trainer.max_minutes",
    "trainer.patience",
    "trainer.divergence_factor",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.trackers",
    "trainer.gradient_checkpointing",
    "trainer.gradient_accumulation_steps",
)


def require_free(run: Path, resume: bool) -> None:
    """Raise ValueError if a folder holds a run that is not resumed, a student without checkpoints to resume from, or files that
    are not of a run."""
    students = [folder for folder in (run / "student", *run.glob("student-*")) if folder.exists()]
    holds_run = bool(students) or any((run / name).exists() for name in WRITTEN)
    if not resume and holds_run:
        raise ValueError(f"out {run} holds a run already; expects --resume, or another folder")
    if students and not _has_checkpoints(run):
        raise replacement_error(students[0])
    if not holds_run:
        require_vacant(run, "out", holds_nothing)


def replacement_error(student: Path) -> ValueError:
    """The error for an existing student that a new student would replace."""
    return ValueError(
        f"out {student.parent} holds {student.name} but no checkpoint of it to resume from, so that a new student would "
        f"replace it; expects another folder, or that {student.name} is moved elsewhere first"
    )


def require_same_settings(run: Path, config: RunConfig) -> None:
    """Raise ValueError, with the old and new values, if a run with checkpoints was begun with other settings.

    `CHANGEABLE` settings may differ.
    """
    file = run / CONFIG
    if not file.is_file() or not _has_checkpoints(run):
        return
    try:
        began, now = _compared(load_config(file)), _compared(config)
    except ValueError as error:
        raise ValueError(f"{file} cannot be compared with the settings of --resume: {error}") from error
    changes = [
        f"{name} is {written(began.get(name))}, not {written(now[name])}"
        for name in now
        if began.get(name) != now[name] and not _moved(began.get(name), now[name])
    ]
    if changes:
        raise ValueError(
            f"out {run} holds a run with other settings: {'; '.join(changes)}; expects the settings of its {CONFIG} to resume, "
            "of which limits and intervals may change, or another folder"
        )


def write_config(run: Path, config: RunConfig) -> None:
    """Write the settings of a run; those of a resumed run have its present limits.

    Raises:
        ValueError: the folder holds a file of that name that no run has written.
    """
    file = run / CONFIG
    require_new(
        file,
        "out",
        lambda found: _has_checkpoints(run) or (run / LOG).is_file() or found.read_text(errors="replace").startswith(HEADER),
    )
    save_config(located(config), file)


def _has_checkpoints(run: Path) -> bool:
    return any(Checkpoints(folder / "checkpoints").steps() for folder in (run, *run.glob("stages/*")))


def _compared(config: RunConfig) -> dict[str, Any]:
    """The settings by name that a resumed run has to share, with absolute paths."""
    values: dict[str, Any] = {}
    absolute = located(config)
    for name in setting_names(type(config)):
        value: Any = absolute
        for part in name.split("."):
            value = getattr(value, part)
        if name not in CHANGEABLE:
            values[name] = _without_limits(value)
    return values


def _without_limits(value: Any) -> Any:
    """Settings by stage, without those that may change; other values as they are."""
    if isinstance(value, list):
        return [_without_limits(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {name: each for name, each in inner.items() if f"trainer.{name}" not in CHANGEABLE}
        if isinstance(inner, dict)
        else inner
        for key, inner in value.items()
    }


def _moved(before: Any, now: Any) -> bool:
    """Whether two paths are of one file that was moved together with the run: the former is gone, and the name is the same."""
    if not isinstance(before, str) or not isinstance(now, str) or not Path(before).is_absolute():
        return False
    return Path(before).name == Path(now).name and not Path(before).exists() and Path(now).exists()
