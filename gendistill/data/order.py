"""Which rows a step sees and which random numbers each of them gets: pure functions of seed and step.

So a run that goes on after an interruption, or on another number of processes, sees what it would have seen.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which an epoch walks `count` rows: int64 (count,), a permutation of 0 ... count - 1."""
    return torch.randperm(count, generator=_generator("epoch", seed, epoch))


# Steps that follow one another share an epoch or two: shuffling is O(count), and need not be paid at every step.
_recent_order = lru_cache(maxsize=2)(epoch_order)


def indices_of_step(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """The rows that global step `step` sees, when `count` rows are walked epoch after epoch and none is dropped.

    Args:
        seed: of the shuffling.
        step: from 0.
        batch_size: of all processes together; may be more than `count`.
        count: rows there are.

    Returns:
        int64 (batch_size,) in [0, count). A batch may begin in one epoch and end in the next.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(first // count, (last - 1) // count + 1):
        start = epoch * count
        pieces.append(_recent_order(seed, epoch, count)[max(first - start, 0) : last - start])
    return torch.cat(pieces)


class PerSampleRandom:
    """Random numbers of `count` samples of a step, each from a stream of its own.

    Sample k of a step gets the same numbers however the step is split into batches and processes (EDM2's
    `StackedRandomGenerator`, Karras et al. 2024). Each call goes on where the last one stopped. The streams are
    PyTorch's CPU generators, which use 32 bits of a seed: among tens of thousands of streams two may be the same.

    Args:
        seed: of the run.
        step: from 0.
        first: place in the step of the first sample.
        count: samples.
    """

    def __init__(self, seed: int, step: int, first: int, count: int):
        self.generators = [_generator("sample", seed, step, first + k) for k in range(count)]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32 (count, *shape) on the CPU."""
        return torch.stack([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in self.generators])

    def uniform(self) -> Tensor:
        """Uniform in [0, 1), float32 (count,) on the CPU."""
        return torch.stack([torch.rand((), generator=generator, dtype=torch.float32) for generator in self.generators])


def _generator(purpose: str, *parts: int) -> torch.Generator:
    """A CPU generator seeded by a hash, so that neighbouring seeds and steps have nothing in common."""
    digest = hashlib.sha256("/".join([purpose, *map(str, parts)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
