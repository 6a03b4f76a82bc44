"""A pipeline with another scheduler, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def scheduler_of(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """`pipeline.scheduler` is `scheduler` inside the block, and afterwards what it was before, whatever happens."""
    usual, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        yield
    finally:
        pipeline.scheduler = usual
