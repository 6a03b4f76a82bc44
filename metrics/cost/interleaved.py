"""Interleaved timing of several models, so that other load on the machine slows all of them equally."""

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
    """Seconds of a batch of `batch_size` images in every round, by model."""

    batch_size: int
    rounds: dict[str, list[float]]

    def seconds_per_image(self, model: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds[model]) / self.batch_size

    def speed_up(self, model: str, over: str) -> float:
        """Speed-up of `model` over `over`: the ratio of the medians."""
        return self.seconds_per_image(over) / self.seconds_per_image(model)

    def speed_up_between(self, model: str, over: str) -> tuple[float, float]:
        """Lower and upper quartile of the speed-up over the rounds."""
        ratios = np.array(self.rounds[over]) / np.array(self.rounds[model])
        low, high = np.quantile(ratios, [0.25, 0.75])
        return float(low), float(high)


def time_side_by_side(
    models: Mapping[str, Callable[[int], object]],
    batch_size: int,
    *,
    warmup: int = 2,
    rounds: int = 9,
    min_seconds: float = 0.0,
    device: torch.device | str = "cpu",
) -> SideBySide:
    """Time `generate(batch_size)` of each model once per round, reversing the order in every second round.

    Args:
        models: `generate` by name of the model.
        warmup: unmeasured rounds.
        rounds: minimum number of measured rounds; there are more, up to 200, until they took `min_seconds` in total.

    Raises:
        ValueError: there are no models, or a number is below 1.
    """
    if not models or min(batch_size, warmup, rounds) < 1:
        raise ValueError(f"batch_size, warmup, rounds: got {batch_size}, {warmup} and {rounds}, expects 1 or more of each.")
    device, names = torch.device(device), list(models)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for generate in models.values():
            generate(batch_size)
    completed, total_seconds = 0, 0.0
    while completed < rounds or (total_seconds < min_seconds and completed < MAX_ROUNDS):
        for name in names if completed % 2 == 0 else reversed(names):
            seconds[name].append(seconds_of(lambda generate=models[name]: generate(batch_size), device))  # type: ignore[misc]
            total_seconds += seconds[name][-1]
        completed += 1
    return SideBySide(batch_size, seconds)
