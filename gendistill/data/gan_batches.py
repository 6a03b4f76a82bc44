"""What a GAN learns on: real images with their classes, images to generate from, or nothing but noise."""

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
        inputs: what generators are given (B, ...): images in [-1, 1], or noise; None where noise is yet to be sampled.
        labels: (B,) int64, the classes that they are asked for; None where these are yet to be sampled, or there are none.
        generated: (B, C, H, W) in [-1, 1], the teacher's images of these inputs and classes; None where it is to be asked.
        real: (B, C, H, W) in [-1, 1]; None where there are none.
        real_labels: (B,) int64, their classes.
    """

    device: torch.device | str
    inputs: Tensor | None = None
    labels: Tensor | None = None
    generated: Tensor | None = None
    real: Tensor | None = None
    real_labels: Tensor | None = None


class NoData:
    """Noise alone: every step samples its own."""

    def __len__(self) -> int:
        return 0

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        return torch.arange(batch_size)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        return GanBatch(device)

    def summary(self) -> dict[str, Any]:
        return {"rows": 0}


class ImageData(CachedData):
    """Cached images uint8 (N, 3, H, W), and their classes, by row.

    For a generator from noise they are the real ones. For one from images they are what it generates from; if it generates larger
    ones, they are kept in the size that it generates, as the real ones, and what goes in is made smaller from them.
    """

    def __init__(self, cache: StoredRows, spec: GeneratorSpec) -> None:
        super().__init__(cache)
        self.spec = spec

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        tensors = self.cache.rows(rows)
        images = from_bytes(tensors["images"].to(device))
        labels = tensors["labels"].to(device) if self.spec.num_classes else None
        channels = self.spec.output_shape[0] if self.spec.kind == "noise" else self.spec.input_shape[0]
        images = images.mean(1, keepdim=True) if channels == 1 else images
        if self.spec.kind == "noise":
            return GanBatch(device, labels=labels, real=images, real_labels=labels)
        if is_enlarging(self.spec):
            return GanBatch(device, smaller(images, self.spec), labels, real=images, real_labels=labels)
        return GanBatch(device, images, labels=labels)


def is_enlarging(spec: GeneratorSpec) -> bool:
    """Whether it generates a larger image of the same kind: then an image made smaller and the image itself are a pair."""
    return spec.kind == "image" and (spec.scale or 1) > 1 and spec.input_shape[0] == spec.output_shape[0]


def smaller(images: Tensor, spec: GeneratorSpec) -> Tensor:
    """Images (B, C, H, W) in the size that goes in (bicubic, antialiased, as super-resolution is usually posed)."""
    height, width = spec.input_shape[1:]
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
