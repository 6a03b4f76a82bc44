"""Which rows a step sees and which random numbers each of them gets: pure functions of seed and step.

So a run that goes on after an interruption, or on another number of processes, sees what it would have seen. No order
is ever written down: a step of ten million rows costs as much as a step of ten.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 8


def indices_of_step(seed: int, step: int, batch_size: int, count: int) -> Tensor:
    """The rows that global step `step` sees, when `count` rows are walked epoch after epoch and none is dropped.

    Args:
        seed: of the shuffling.
        step: from 0.
        batch_size: of all processes together; may be more than `count`.
        count: rows there are, less than 2^32.

    Returns:
        int64 (batch_size,) in [0, count). A batch may begin in one epoch and end in the next.
    """
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    for epoch in range(first // count, (last - 1) // count + 1):
        start = epoch * count
        places = range(max(first - start, 0), min(last - start, count))
        pieces.append(permuted(places, count, "epoch", seed, epoch))
    return torch.from_numpy(np.concatenate(pieces))


def bucket_of_step(seed: int, step: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Which bucket step `step` sees, and which of that bucket's own steps it is.

    In N steps, N the number of all rows, a bucket of n rows has n steps, in an order sampled anew each N steps: with
    `indices_of_step` over the rows of the bucket every row is seen batch_size times in N steps, in small buckets as in
    large ones.

    Args:
        sizes: rows of each bucket, all above 0.

    Returns:
        The number of the bucket, and the step of it, from 0.
    """
    round_, place = divmod(step, sum(sizes))
    left = int(permuted(range(place, place + 1), sum(sizes), "bucket", seed, round_)[0])
    for bucket, size in enumerate(sizes):
        if left < size:
            return bucket, round_ * size + left
        left -= size
    raise AssertionError("a place is below the sum of the sizes")


def permuted(places: range, count: int, *key: str | int) -> NDArray[np.int64]:
    """Where the permutation of 0 ... count - 1 that `key` decides sends `places`, n numbers in [0, count): int64 (n,).

    A Feistel network over the next power of four, walked until it is back below `count` (Black & Rogaway 2002, "Ciphers
    with arbitrary finite domains"): constant memory, and time that does not grow with `count`.
    """
    half = max(((count - 1).bit_length() + 1) // 2, 2)
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    round_keys = [int.from_bytes(digest[4 * k : 4 * k + 4], "big") for k in range(ROUNDS)]
    out = _feistel(np.array(places, dtype=np.int64), half, round_keys)
    while (outside := out >= count).any():
        out[outside] = _feistel(out[outside], half, round_keys)
    return out


def _feistel(value: NDArray[np.int64], half: int, round_keys: list[int]) -> NDArray[np.int64]:
    """A permutation of 0 ... 4^half - 1."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for key in round_keys:
        left, right = right, left ^ (_mixed(right ^ key) & low)
    return (left << half) | right


def _mixed(value: NDArray[np.int64]) -> NDArray[np.int64]:
    """32 bits that each depend on all 32 bits of `value`; the factor is small enough for int64."""
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return value ^ (value >> 16)


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

    def uniform(self, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [0, 1), float32 (count, *shape) on the CPU."""
        return torch.stack([torch.rand(shape, generator=generator, dtype=torch.float32) for generator in self.generators])


def _generator(purpose: str, *parts: int) -> torch.Generator:
    """A CPU generator seeded by a hash, so that neighbouring seeds and steps have nothing in common."""
    digest = hashlib.sha256("/".join([purpose, *map(str, parts)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
