"""A temporary scheduler for a pipeline, and temporary generators for a scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Generator


@contextmanager
def scheduler_of(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """Set `pipeline.scheduler` to `scheduler` inside the block and restore it afterwards, also after an error."""
    previous, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        yield
    finally:
        pipeline.scheduler = previous


@contextmanager
def generators_of(scheduler: Any, generators: list[Generator]) -> Iterator[None]:
    """Inside the block the noise of `scheduler.step` is from `generators`, one a sample, also where a pipeline passes none."""
    step = scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        yield
        return

    @wraps(step)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **{**kwargs, "generator": generators})

    scheduler.step = seeded
    try:
        yield
    finally:
        del scheduler.step
