"""A temporary scheduler for a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def scheduler_of(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """Set `pipeline.scheduler` to `scheduler` inside the block and restore it afterwards, also after an error."""
    previous, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        yield
    finally:
        pipeline.scheduler = previous
