"""Weights of losses: numbers, or schedules by step or by fraction of the run."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator

WEIGHT = (
    "a number of at least 0, or numbers by step such as {0: 1, 500: 0.1}, or by fraction of the run such as {0.5: 1, 1.0: 0}"
)


class Step(int):
    """The number of an optimizer step, from 0, and the fraction of the run that is done before it.

    The fraction is that of `max_steps` or of `max_minutes`, whichever is larger: in [0, 1].
    """

    fraction: float

    def __new__(cls, number: int, fraction: float) -> Step:
        step = super().__new__(cls, number)
        step.fraction = fraction
        return step


def _weight(value: Any) -> float | dict[float, float]:
    """YAML reads the steps of a schedule as numbers, JSON as texts."""
    try:
        read = {float(step): float(weight) for step, weight in value.items()} if isinstance(value, dict) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(WEIGHT) from error
    numbers = [*read.values(), *read.keys()] if isinstance(read, dict) else [read]
    if not numbers or not all(0 <= number < math.inf for number in numbers):
        raise ValueError(WEIGHT)
    if isinstance(read, dict) and max(read) > 1 and any(0 < key < 1 for key in read):
        raise ValueError(f"{WEIGHT}; steps and fractions do not mix")
    return read


def _temperature(value: Any) -> float | dict[float, float]:
    read = _weight(value)
    if min(read.values() if isinstance(read, dict) else [read]) <= 0:
        raise ValueError(WEIGHT.replace("of at least 0", "above 0"))
    return read


# A weight, or weights with straight lines between them: by fraction of the run if no key is above 1, else by step.
Weight = Annotated[float | dict[float, float], BeforeValidator(_weight)]
Temperature = Annotated[float | dict[float, float], BeforeValidator(_temperature)]


def weight_at(weight: float | dict[float, float], step: Step | int) -> float:
    """The weight of a step; a schedule is linear between the steps or fractions that it names, and constant before and after.

    A schedule by fraction of the run needs a `Step`; a plain number has none.
    """
    if not isinstance(weight, dict):
        return weight
    keys = sorted(weight)
    position = step.fraction if keys[-1] <= 1 and isinstance(step, Step) else float(step)
    if position <= keys[0]:
        return weight[keys[0]]
    for before, after in pairwise(keys):
        if position < after:
            part = (position - before) / (after - before)
            return (1 - part) * weight[before] + part * weight[after]
    return weight[keys[-1]]
