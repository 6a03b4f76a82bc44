"""Batches of latents, conditions and trajectories, read from cached rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gendistill.data.cached import CachedData
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom, bucket_of_step, indices_of_step
from gendistill.samplers.codec import sample_moments
from gendistill.samplers.conditioning import Conditioning

CONDITION = "condition."


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, h, w) float32 of about unit variance and their conditions; optionally trajectories of the teacher, which
    start from other noise under other conditions."""

    latents: Tensor
    conditioning: Conditioning
    trajectories: Trajectories | None = None


@dataclass(frozen=True)
class Trajectories:
    """A batch of the teacher's trajectories from noise to latents.

    Attributes:
        points: (B, K + 1, C, h, w) float32, from the noise to the latents.
        times: (K + 1,) decreasing timesteps of the points; the last is `clean`.
        conditioning: (B); contains the guidance scale of each trajectory where the scale was sampled.
    """

    points: Tensor
    times: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.points)

    @property
    def noise(self) -> Tensor:
        """(B, C, h, w)"""
        return self.points[:, 0]

    @property
    def latents(self) -> Tensor:
        """The latents (B, C, h, w) at which the trajectories end."""
        return self.points[:, -1]


class LatentData(CachedData):
    """Cached moments and conditions by row.

    A cache holds `moments` (N, 2 C, h, w) and, under `condition.NAME`, the tensors of a `Conditioning`; each group of the
    cache is an aspect ratio bucket, whose latents have one shape.

    Attributes:
        prior_texts: the prompts of the last rows, which the teacher has generated next to images; empty without such rows.
    """

    prior_texts: Sequence[str] = ()

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 of global step `step`, all from one bucket; see `CachedData`."""
        sizes = list(self.cache.groups.values())
        if len(sizes) == 1:
            return super().rows_of_step(seed, step, batch_size)
        bucket, step_of_bucket = bucket_of_step(seed, step, sizes)
        start = [0, *accumulate(sizes)][bucket]
        return start + indices_of_step(seed, step_of_bucket, batch_size, sizes[bucket])

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> Batch:
        """The samples at `rows` (B,) int64; each call samples new latents from the encoder's posterior."""
        tensors = self.cache.rows(rows)
        moments = tensors["moments"].float()
        latents = sample_moments(moments, random.normal((moments.shape[1] // 2, *moments.shape[2:])))
        return Batch(to_device(latents, device), conditioning_of(tensors).to(device))

    @property
    def described(self) -> str:
        """One line about the data for logs and model cards."""
        return self.cache.provenance.get("described", "unknown")

    def summary(self) -> dict[str, Any]:
        counts = {name: int(self.cache.notes.get(name, 0)) for name in ("missing_captions", "enlarged")}
        return {**super().summary(), "buckets": self.cache.groups, **counts}


def as_rows(moments: Tensor, conditioning: Conditioning, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Rows for `LatentData`: moments in float16, floating-point conditions in `dtype` (see `Family.cache_dtype`)."""
    return {"moments": moments.half().cpu(), **condition_rows(conditioning, dtype)}


def condition_rows(conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Tensor]:
    """Conditions as cached rows; `conditioning_of` restores them."""
    return {CONDITION + name: tensor for name, tensor in conditioning.to("cpu", dtype).items()}


def conditioning_of(rows: dict[str, Tensor]) -> Conditioning:
    """The conditions in cached rows."""
    return Conditioning(**{name.removeprefix(CONDITION): rows[name] for name in rows if name.startswith(CONDITION)})
