"""Weights of losses: numbers, or schedules by step or by fraction of the run."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from gendistill.settings.section import Section

SomeSection = TypeVar("SomeSection", bound=Section)
WEIGHT = "a number of at least 0, or numbers by step such as {0: 1, 500: 0.1}, or by fraction of the run such as {0.5: 1, 1: 0}"


def _weight(value: Any) -> float | dict[float, float]:
    """YAML reads the steps of a schedule as numbers, JSON as texts."""
    try:
        read = {float(step): float(weight) for step, weight in value.items()} if isinstance(value, dict) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(WEIGHT) from error
    numbers = [*read.values(), *read.keys()] if isinstance(read, dict) else [read]
    if not numbers or not all(0 <= number < math.inf for number in numbers):
        raise ValueError(WEIGHT)
    return read


def _temperature(value: Any) -> float | dict[float, float]:
    read = _weight(value)
    if min(read.values() if isinstance(read, dict) else [read]) <= 0:
        raise ValueError(WEIGHT.replace("of at least 0", "above 0"))
    return read


# A weight, or weights by step with straight lines between them; keys below 1 are fractions of all steps, and so is
# 1, the end, where no key is above it.
Weight = Annotated[float | dict[float, float], BeforeValidator(_weight)]
Temperature = Annotated[float | dict[float, float], BeforeValidator(_temperature)]


def weight_at(weight: float | dict[float, float], step: int) -> float:
    """The weight of a step; a schedule is linear between the steps that it names, and constant before and after them."""
    if not isinstance(weight, dict):
        return weight
    steps = sorted(weight)
    if step <= steps[0]:
        return weight[steps[0]]
    for before, after in pairwise(steps):
        if step < after:
            fraction = (step - before) / (after - before)
            return (1 - fraction) * weight[before] + fraction * weight[after]
    return weight[steps[-1]]


def in_steps(section: SomeSection, steps: int) -> SomeSection:
    """The same settings with every schedule by step, for a run of `steps` steps; nested sections too."""
    changed: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            changed[name] = in_steps(value, steps)
        elif isinstance(value, dict) and all(isinstance(key, float) for key in value):
            by_fraction = max(value, default=0) <= 1
            changed[name] = {key * steps if key < 1 or by_fraction else key: weight for key, weight in value.items()}
    return section.model_copy(update=changed)
