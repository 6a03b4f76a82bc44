"""The time of one of many runs that are compared at equal minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendistill.methods import RunConfig, outline_of
from gendistill.run.config import load_config


def timed_config(file: Path | None, settings: dict[str, Any], minutes: float) -> RunConfig:
    """The settings of a run whose stages together train for `minutes`, each for an equal part.

    Args:
        file, settings: as for `load_config`.

    Raises:
        ValueError: as `load_config`.
    """
    stages = len(outline_of(load_config(file, dict(settings))))
    return load_config(file, {**settings, "trainer.max_minutes": minutes / stages})
