"""A JSON cache of measurements that take long."""

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
    folder: Path, key_parts: Any, kind: type[Figures], measure: Callable[[], Figures], on_hit: Callable[[], None]
) -> Figures:
    """The cached result of `measure` for `key_parts`, or a new one.

    Args:
        key_parts: everything that the figures depend on, JSON-serialisable.
        kind: the dataclass of the figures; a file with other fields is measured anew.
        on_hit: called instead of `measure` if the figures are cached.

    Raises:
        ValueError: raised by `measure`, or the file cannot be written.
    """
    file = folder / f"{hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:16]}.json"
    try:
        figures = TypeAdapter(kind).validate_python(json.loads(file.read_text()))
    except (OSError, ValueError):
        figures = measure()
        make_folder(folder)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(figures), indent=1) + "\n")  # type: ignore[call-overload]
    else:
        on_hit()
    return figures
