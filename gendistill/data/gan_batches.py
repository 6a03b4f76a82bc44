"""What a GAN learns on: real pictures with their classes, pictures to paint from, or nothing but noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.data.cached import CachedData
from gendistill.data.images import from_bytes
from gendistill.gan.generator import GeneratorSpec
from gendistill.runtime.random import PerSampleRandom
from gendistill.runtime.stored_rows import StoredRows


@dataclass(frozen=True)
class GanBatch:
    """What a step sees.

    Attributes:
        inputs: what generators are given (B, ...): pictures in [-1, 1], or noise; None where noise is yet to be drawn.
        labels: (B,) int64, the classes that they are asked for; None where these are yet to be drawn, or there are none.
        painted: (B, C, H, W) in [-1, 1], the teacher's pictures of these inputs and classes; None where it is to be asked.
        real: (B, C, H, W) in [-1, 1]; None where there are none.
        real_labels: (B,) int64, their classes.
    """

    device: torch.device | str
    inputs: Tensor | None = None
    labels: Tensor | None = None
    painted: Tensor | None = None
    real: Tensor | None = None
    real_labels: Tensor | None = None


class NoData:
    """Noise alone: every step draws its own."""

    def __len__(self) -> int:
        return 0

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        return torch.arange(batch_size)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        return GanBatch(device)

    def summary(self) -> dict[str, Any]:
        return {"rows": 0}


class PictureData(CachedData):
    """Cached pictures uint8 (N, 3, H, W), and their classes, by row.

    For a generator from noise they are the real ones. For one from pictures they are what it paints from; if it paints larger
    ones, they are kept in the size that it paints, as the real ones, and what goes in is made smaller from them.
    """

    def __init__(self, cache: StoredRows, spec: GeneratorSpec) -> None:
        super().__init__(cache)
        self.spec = spec

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        tensors = self.cache.rows(rows)
        pictures = from_bytes(tensors["pictures"].to(device))
        labels = tensors["labels"].to(device) if self.spec.num_classes else None
        channels = self.spec.output_shape[0] if self.spec.kind == "noise" else self.spec.input_shape[0]
        pictures = pictures.mean(1, keepdim=True) if channels == 1 else pictures
        if self.spec.kind == "noise":
            return GanBatch(device, labels=labels, real=pictures, real_labels=labels)
        if is_enlarging(self.spec):
            return GanBatch(device, smaller(pictures, self.spec), labels, real=pictures, real_labels=labels)
        return GanBatch(device, pictures, labels=labels)


def is_enlarging(spec: GeneratorSpec) -> bool:
    """Whether it paints a larger picture of the same kind: then a picture made smaller and the picture itself are a pair."""
    return spec.kind == "image" and (spec.scale or 1) > 1 and spec.input_shape[0] == spec.output_shape[0]


def smaller(pictures: Tensor, spec: GeneratorSpec) -> Tensor:
    """Pictures (B, C, H, W) in the size that goes in (bicubic, antialiased, as super-resolution is usually posed)."""
    height, width = spec.input_shape[1:]
    return F.interpolate(pictures, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
