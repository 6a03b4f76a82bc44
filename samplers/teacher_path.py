"""Where a student's teacher is: its path is stored absolute and relative to the student, and is found if both were moved."""

from __future__ import annotations

import os
from pathlib import Path

from gendistill.assets import asset_path


def relative_path(teacher: str, folder: Path) -> str | None:
    """The path of a local teacher relative to the student's folder; None for a hub id, an asset or a class."""
    path = Path(teacher)
    return os.path.relpath(path, folder.absolute()) if path.is_absolute() else None


def found_path(teacher: str, relative: str | None, folder: Path) -> str:
    """The path of a teacher that a student in `folder` names; `teacher` itself where there is no other.

    Students of earlier versions name the teacher relative to the working folder of their training, often one above the run.
    """
    path = Path(asset_path(teacher)).expanduser()
    if path.exists():
        return teacher
    if relative is not None and (folder / relative).exists():
        return str((folder / relative).resolve())
    above = folder.absolute().parents if len(path.parts) and not path.is_absolute() else ()
    return next((str(parent / path) for parent in above if _is_model(parent / path)), teacher)


def _is_model(path: Path) -> bool:
    return path.is_file() or any((path / name).is_file() for name in ("model_index.json", "gan.json"))
