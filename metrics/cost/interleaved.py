"""Models timed side by side: turn and turn about, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gendistill.metrics.cost.components import seconds_of

MAX_ROUNDS = 200


@dataclass(frozen=True)
class SideBySide:
    """Seconds of every round, by model, of sampling `batch_size` images together."""

    batch_size: int
    rounds: dict[str, list[float]]

    def seconds_per_image(self, model: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds[model]) / self.batch_size

    def speed_up(self, model: str, over: str) -> float:
        """How many times faster a model is: the ratio of the medians."""
        return self.seconds_per_image(over) / self.seconds_per_image(model)

    def speed_up_between(self, model: str, over: str) -> tuple[float, float]:
        """The quartiles of the ratio over the rounds."""
        ratios = np.array(self.rounds[over]) / np.array(self.rounds[model])
        low, high = np.quantile(ratios, [0.25, 0.75])
        return float(low), float(high)


def time_side_by_side(
    draws: Mapping[str, Callable[[int], object]],
    batch_size: int,
    *,
    warmup: int = 2,
    rounds: int = 9,
    min_seconds: float = 0.0,
    device: torch.device | str = "cpu",
) -> SideBySide:
    """Time `sample(batch_size)` of each model once a round, the order turned round by round.

    Args:
        warmup: rounds that do not count.
        rounds: that do, and more (200 at most) until all of them together took `min_seconds`.

    Raises:
        ValueError: there is nothing to sample, or a number is below 1.
    """
    if not draws or min(batch_size, warmup, rounds) < 1:
        raise ValueError(f"batch_size, warmup, rounds: got {batch_size}, {warmup} and {rounds}, expects 1 or more of each.")
    device, names = torch.device(device), list(draws)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for generate in draws.values():
            generate(batch_size)
    done, spent = 0, 0.0
    while done < rounds or (spent < min_seconds and done < MAX_ROUNDS):
        for name in names if done % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(lambda generate=draws[name]: generate(batch_size), device))  # type: ignore[misc]
            spent += seconds[name][-1]
        done += 1
    return SideBySide(batch_size, seconds)
