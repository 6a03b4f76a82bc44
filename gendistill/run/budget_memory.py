"""The memory of a run with a budget: the first settings of `budget_rules.MEMORY_STEPS` whose predicted step fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from typing import Any

import psutil
import torch

from gendistill.run.budget_rules import MEMORY_STEPS
from gendistill.run.config import load_config
from gendistill.run.training_plan import step_needs
from gendistill.samplers.families import Family
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT


def fitting_memory(settings: dict[str, Any], family: Family, device: str, memory: float | None) -> tuple[dict[str, Any], str]:
    """The settings that save enough memory, with the least of them, and a description.

    A teacher of pixels has no prediction: it is trained with all weights.

    Args:
        settings: of the run, by dotted name, which take precedence.
        memory: GiB; what is free on the device if None.

    Raises:
        ValueError: nothing fits.
    """
    available = free_memory(device) if memory is None else memory
    if family.bounded:
        return {}, "memory: not predicted for a teacher of pixels; all weights"
    context, ladder = CUDA_CONTEXT if device == "cuda" else 0, list(memory_ladder(family))

    @cache
    def needed(rung: int) -> float:
        config = load_config(None, {**ladder[rung][1], **settings})
        return (step_needs(config, cpu=device == "cpu").peak + context) / 2**30

    def fits(rung: int) -> bool:
        return needed(rung) <= available

    rung = 0 if fits(0) else bisect_left(range(len(ladder)), True, lo=1, key=fits)  # each needs less than the one before
    if rung == len(ladder):
        raise ValueError(
            f"memory of {available:.2f} GiB: no settings of {settings['teacher']} fit, the least that would do is "
            f"{needed(rung - 1):.2f} GiB; expects more memory, a smaller data.resolution or a smaller teacher"
        )
    name, changes = ladder[rung]
    return changes, f"memory: {name}, {needed(rung):.2f} GiB predicted of {available:.2f} GiB"


def memory_ladder(family: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that need less and less memory, each in addition to those before it, with their names."""
    settings: dict[str, Any] = {}
    for name, changes in MEMORY_STEPS:
        if any(setting.startswith("lora.") for setting in changes) and not family.lora:
            continue
        settings = {**settings, **changes}
        yield name, settings


def free_memory(device: str) -> float:
    """Free memory of a device in GiB."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    return psutil.virtual_memory().available / 2**30
