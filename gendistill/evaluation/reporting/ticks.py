"""Round numbers for axes, few enough for a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator


def set_ticks(axis: Any, values: Sequence[float]) -> None:
    axis.set_ticks(values, [f"{value:,.10g}" for value in values])
    axis.set_ticks([], minor=True)


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers around [low, high] for a logarithmic axis, `most` at most where some choice of digits allows."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        every = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        ticks = [tick for tick in every if 0.9 * low <= tick <= 1.1 * high]
        if len(ticks) <= most:
            break
    if low == high:
        return [low]
    return ticks if len(ticks) > 1 else [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if tick > 0]


def spaced(ticks: Sequence[float], most: int) -> list[float]:
    """Those of sorted ticks above 0 that stand apart on a logarithmic axis, the ends always."""
    if not ticks:
        return []
    apart = (math.log(ticks[-1]) - math.log(ticks[0])) / most
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if math.log(tick) - math.log(kept[-1]) >= apart:
            kept.append(tick)
        elif tick == ticks[-1] and len(kept) > 1:
            kept[-1] = tick
    return kept
