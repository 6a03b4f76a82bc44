"""Figures that take long to measure, kept as JSON: measured once for the same question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from gendistill.runtime.device import make_folder
from gendistill.runtime.files import atomic_write

Figures = TypeVar("Figures")


def cached_figures(
    folder: Path, asked: Any, kind: type[Figures], measure: Callable[[], Figures], found: Callable[[], None]
) -> Figures:
    """What `measure` gave where it was asked the same before, else what it gives.

    Args:
        asked: all that the figures depend on, as JSON has it.
        kind: the dataclass that they are in; a file that does not fit it is measured anew.
        found: called instead of `measure` where there are figures.

    Raises:
        ValueError: as `measure`; or the disk does not take the file.
    """
    file = folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"
    try:
        kept = TypeAdapter(kind).validate_python(json.loads(file.read_text()))
    except (OSError, ValueError):
        kept = measure()
        make_folder(folder)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(kept), indent=1) + "\n")  # type: ignore[call-overload]
    else:
        found()
    return kept
