"""Images to learn together with images that the teacher generates from its own prompts: prior preservation (Ruiz et al. 2023).

A fraction of every batch comes from the teacher, so that a model that learns the new images keeps what it could generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from torch import Tensor

from gendistill.data.batches import LatentData
from gendistill.data.cached import Progress
from gendistill.data.data_config import DataConfig
from gendistill.data.encode import generated_latents
from gendistill.data.sources.prompts import Prompts
from gendistill.diffusion.teacher import Teacher
from gendistill.runtime.random import indices_of_step
from gendistill.runtime.stored_rows import StoredRows


class JoinedRows:
    """The rows of two stores of equal tensors under consecutive numbers, those of `first` before those of `second`."""

    def __init__(self, first: StoredRows, second: StoredRows, described: str) -> None:
        self.first, self.second = first, second
        self.groups = {"joined": len(first) + len(second)}
        self.key = f"{first.key}-{second.key}"
        self.broken, self.left_out = first.broken, first.left_out
        self.notes, self.provenance = first.notes, {"described": described}
        self.skipped_keys = first.skipped_keys

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Rows in the order of `indices`, n integers in [0, len(self)): tensors (n, ...) by name; see `StoredRows.rows`."""
        requested = torch.as_tensor(indices, dtype=torch.int64)
        from_second = requested >= len(self.first)
        parts = [
            (~from_second, self.first.rows(requested[~from_second])),
            (from_second, self.second.rows(requested[from_second] - len(self.first))),
        ]
        joined = {}
        for name, tensor in parts[0][1].items():
            joined[name] = torch.empty(len(requested), *tensor.shape[1:], dtype=tensor.dtype)
            for chosen, tensors in parts:
                joined[name][chosen] = tensors[name]
        return joined


class RegularizedData(LatentData):
    """New images and the teacher's, mixed in a fixed ratio whatever their numbers are.

    Args:
        new: the images to learn.
        prior: images that the teacher has generated from `prompts`.
        fraction: of samples from `prior`, in [0, 1).
        prompts: the prompt of every row of `prior`.

    Raises:
        ValueError: the images have several sizes, or another size than the teacher's.
    """

    def __init__(self, new: LatentData, prior: LatentData, fraction: float, prompts: Sequence[str]) -> None:
        shapes = {tuple(data.cache.rows([row])["moments"].shape[1:]) for data in (new, prior) for row in _firsts(data)}
        if len(shapes) > 1:
            raise ValueError(
                "data.prior_fraction: the teacher generates images of one size; expects data.crop center or random"
            )
        rows: Any = JoinedRows(
            new.cache, prior.cache, f"{new.described} and {len(prior)} images of the teacher from {prior.described}"
        )
        super().__init__(rows)
        self.num_new, self.fraction, self.prior_texts = len(new), fraction, list(prompts)

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 of global step `step`: the teacher's spread evenly among the new ones, both in shuffled
        epochs of their own."""
        rows = []
        for number in range(step * batch_size, (step + 1) * batch_size):
            before, after = floor(number * self.fraction), floor((number + 1) * self.fraction)
            if after > before:
                rows.append(self.num_new + indices_of_step(seed + 1, before, 1, len(self) - self.num_new))
            else:
                rows.append(indices_of_step(seed, number - before, 1, self.num_new))
        return torch.cat(rows)


def _firsts(data: LatentData) -> list[int]:
    """The number of the first row of each group of sizes."""
    starts, start = [], 0
    for count in data.cache.groups.values():
        starts.append(start)
        start += count
    return starts


def regularized(
    new: LatentData, config: DataConfig, teacher: Teacher, prompts: Prompts, seed: int, progress: Progress | None = None
) -> RegularizedData:
    """`new` with `num_prior` images that the teacher generates from `prompts`, read from the cache or generated into it first.

    Args:
        progress: called with the number of images after each batch that this process generates.
    """
    prior = generated_latents(config, teacher, prompts, config.num_prior, seed, progress)
    texts = [prompts.prompts[number % len(prompts)] for number in range(len(prior))]
    return RegularizedData(new, prior, config.prior_fraction, texts)
