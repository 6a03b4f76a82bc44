"""The settings of a run that continues a student: its teacher, steps, sampler, guidance and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill.samplers import StudentSpec
from gendistill.settings.image_size import written_size


def settings_of_student(student: str, teacher: str | None = None) -> dict[str, Any]:
    """Settings by dotted name.

    Args:
        student: a student's folder.
        teacher: the teacher's folder, hub id or checkpoint, in place of that of `gendistill.json`.

    Raises:
        ValueError: the folder is not that of a student, or its teacher does not exist.
    """
    folder = Path(student).expanduser()
    spec = StudentSpec.load(folder)
    if spec is None:
        state = "has no gendistill.json" if folder.is_dir() else "is not a folder"
        near = f" (there is {folder / 'student'})" if (folder / "student").is_dir() else ""
        raise ValueError(f"student {student} {state}{near}; expects the folder of a student that gendistill has trained")
    source = spec.of_teacher
    if teacher is None and Path(source.teacher).is_absolute() and not Path(source.teacher).exists():
        raise ValueError(f"teacher {source.teacher} of the student does not exist; expects --teacher with its present path")
    settings = {
        "teacher": teacher or source.teacher,
        "teacher_config": None if teacher else source.teacher_config,
        "teacher_revision": None if teacher else source.teacher_revision,
        "start": str(folder),
        "steps": list(spec.num_inference_steps),
        "solvers": ["ddim" if spec.solver == "stochastic" else spec.solver],
        "guidance.mode": spec.guidance,
        "guidance.scale": spec.guidance_scale,
        "guidance.range": spec.guidance_range,
        "data.resolution": None if spec.size is None else written_size(spec.size),
    }
    return {name: value for name, value in settings.items() if value is not None}
