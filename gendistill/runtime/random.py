"""Rows and random numbers of a training step, as pure functions of seed and step.

A run that resumes after an interruption, or with another number of processes, therefore sees the same data. No
permutation is stored: a step costs the same with ten million rows as with ten.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 8


def indices_of_step(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """The rows of global step `step` in shuffled epochs over `count` rows, without dropping rows.

    Args:
        seed: seed of the shuffling.
        step: step number, from 0.
        batch_size: batch size of all processes together; may exceed `count`.
        count: number of rows, less than 2^32.

    Returns:
        int64 (batch_size,) in [0, count). A batch may begin in one epoch and end in the next.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(first // count, (last - 1) // count + 1):
        start = epoch * count
        positions = range(max(first - start, 0), min(last - start, count))
        pieces.append(permuted(positions, count, "epoch", seed, epoch))
    return torch.from_numpy(np.concatenate(pieces))


def bucket_of_step(seed: int, step: int, sizes: Sequence[int]) -> tuple[int, int]:
    """The bucket of step `step`, and the number of this step among the steps of the bucket.

    In N steps, N the number of all rows, a bucket of n rows has n steps, in an order that is shuffled every N steps: with
    `indices_of_step` over the rows of the bucket, every row is used batch_size times in N steps, in small and large
    buckets.

    Args:
        sizes: number of rows of each bucket, all above 0.

    Returns:
        The number of the bucket, and the step within the bucket, from 0.
    """
    round_, position = divmod(step, sum(sizes))
    remaining = int(permuted(range(position, position + 1), sum(sizes), "bucket", seed, round_)[0])
    for bucket, size in enumerate(sizes):
        if remaining < size:
            return bucket, round_ * size + remaining
        remaining -= size
    raise AssertionError("the position is below the sum of the sizes")


def permuted(positions: range, count: int, *key: str | int) -> NDArray[np.int64]:
    """The images int64 (n,) of `positions`, n numbers in [0, count), under the permutation of 0 ... count - 1 given by `key`.

    A Feistel network over the next power of four, repeated until the result is below `count` (cycle walking, Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains"): constant memory, and time that does not grow with `count`.
    """
    half = max(((count - 1).bit_length() + 1) // 2, 2)
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    round_keys = [int.from_bytes(digest[4 * k : 4 * k + 4], "big") for k in range(ROUNDS)]
    out = _feistel(np.array(positions, dtype=np.int64), half, round_keys)
    while (outside := out >= count).any():
        out[outside] = _feistel(out[outside], half, round_keys)
    return out


def _feistel(value: NDArray[np.int64], half: int, round_keys: list[int]) -> NDArray[np.int64]:
    """A permutation of 0 ... 4^half - 1."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << half) | right


def _mix(value: NDArray[np.int64]) -> NDArray[np.int64]:
    """A 32-bit hash, each bit of which depends on all 32 bits of `value`; the factor is small enough for int64."""
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return value ^ (value >> 16)


class PerSampleRandom:
    """Random numbers for `count` samples of a step, from one generator per sample.

    Sample k of a step gets the same numbers for all divisions of the step into batches and processes (EDM2's
    `StackedRandomGenerator`, Karras et al. 2024). Successive calls continue the streams. The generators are
    PyTorch's CPU generators, which use 32 bits of a seed: two of tens of thousands of streams may be equal.

    Args:
        seed: seed of the run.
        step: step number, from 0.
        first: index of the first sample in the step.
        count: number of samples.
    """

    def __init__(self, seed: int, step: int, first: int, count: int):
        self.generators = [_generator("sample", seed, step, first + k) for k in range(count)]
        self.seed, self.step, self.first = seed, step, first

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32 (count, *shape) on the CPU."""
        return torch.stack([torch.randn(shape, generator=generator, dtype=torch.float32) for generator in self.generators])

    def uniform(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [0, 1), float32 (count, *shape) on the CPU."""
        return torch.stack([torch.rand(shape, generator=generator, dtype=torch.float32) for generator in self.generators])

    def of_step(self, count: int) -> list[float]:
        """`count` uniform numbers in [0, 1) that all samples of the step share; the same in every call."""
        numbers: list[float] = torch.rand(count, generator=_generator("step", self.seed, self.step)).tolist()
        return numbers

    def of_batch(self, count: int) -> list[float]:
        """`count` uniform numbers in [0, 1) that all samples of this object share; the same in every call."""
        numbers: list[float] = torch.rand(count, generator=_generator("batch", self.seed, self.step, self.first)).tolist()
        return numbers


def _generator(purpose: str, *parts: int) -> torch.Generator:
    """A CPU generator seeded with a hash, so that neighbouring seeds and steps give independent streams."""
    digest = hashlib.sha256("/".join([purpose, *map(str, parts)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
