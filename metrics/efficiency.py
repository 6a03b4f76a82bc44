"""How long a picture takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds a picture: the median and the 90th percentile over the repeats."""

    median: float
    p90: float


def seconds_per_picture(generate: Callable[[int], object], pictures: int = 8, warmup: int = 1, repeats: int = 5) -> Timing:
    """Time `generate(pictures)`, which makes that many pictures, `repeats` times after `warmup` untimed calls.

    On a GPU the clock is read only after all of its work is done.

    Raises:
        ValueError: `pictures` or `repeats` is below 1.
    """
    if pictures < 1 or repeats < 1:
        raise ValueError(f"pictures, repeats: got {pictures} and {repeats}, takes at least 1 of each.")
    for _ in range(warmup):
        generate(pictures)
    seconds = []
    for _ in range(repeats):
        _wait_for_gpu()
        started = time.perf_counter()
        generate(pictures)
        _wait_for_gpu()
        seconds.append((time.perf_counter() - started) / pictures)
    return Timing(float(np.median(seconds)), float(np.quantile(seconds, 0.9)))


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
