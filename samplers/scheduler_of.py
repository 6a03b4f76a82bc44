"""Temporary changes of a pipeline's scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
def noise_from(scheduler: Any, generators: Sequence[Generator]) -> Iterator[None]:
    """A context in which the steps of a scheduler have their noise from the generators of the samples, also where a pipeline
    passes none: pipelines of flow matching would have the noise of `FlowMatchLCMScheduler` from torch's global generator."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        yield
        return
    scheduler.step = partial(scheduler.step, generator=list(generators))
    try:
        yield
    finally:
        del scheduler.step
