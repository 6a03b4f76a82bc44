"""Training batches of a GAN: real images with their classes, input images, or noise alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.data.cached import CachedData
from gendistill.data.images import from_bytes
from gendistill.gan.generator import GeneratorSpec
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.runtime.stored_rows import StoredRows


@dataclass(frozen=True)
class GanBatch:
    """The data of one training step.

    Attributes:
        inputs: (B, ...), inputs of the generators: images in [-1, 1], or noise; None where the step samples noise.
        labels: (B,) int64, the requested classes; None where the step samples them, or the generator has no classes.
        generated: (B, C, H, W) in [-1, 1], the teacher's images of these inputs and classes; None where the step does that.
        real: (B, C, H, W) in [-1, 1], real images; None without data.
        real_labels: (B,) int64, classes of the real images.
    """

    device: torch.device | str
    inputs: Tensor | None = None
    labels: Tensor | None = None
    generated: Tensor | None = None
    real: Tensor | None = None
    real_labels: Tensor | None = None


class NoData:
    """Noise alone: every training step samples its inputs."""

    def __len__(self) -> int:
        return 0

    def fingerprint(self) -> None:
        return None

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        return torch.arange(batch_size)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        return GanBatch(device)

    def summary(self) -> dict[str, Any]:
        return {"rows": 0}


class ImageData(CachedData):
    """Cached images uint8 (N, 3, H, W) and their classes by row.

    The images are the real images of a generator from noise, and the inputs of an image-to-image generator. For
    super-resolution they have the output size and are the real images; the inputs are downsampled from them.
    """

    def __init__(self, cache: StoredRows, spec: GeneratorSpec) -> None:
        super().__init__(cache)
        self.spec = spec

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        tensors = self.cache.rows(rows)
        images = from_bytes(to_device(tensors["images"], device))
        labels = to_device(tensors["labels"], device) if self.spec.num_classes else None
        channels = self.spec.output_shape[0] if self.spec.kind == "noise" else self.spec.input_shape[0]
        images = images.mean(1, keepdim=True) if channels == 1 else images
        if self.spec.kind == "noise":
            return GanBatch(device, labels=labels, real=images, real_labels=labels)
        if is_enlarging(self.spec):
            return GanBatch(device, downsampled(images, self.spec), labels, real=images, real_labels=labels)
        return GanBatch(device, images, labels=labels)


def is_enlarging(spec: GeneratorSpec) -> bool:
    """Whether the generator does super-resolution: then a downsampled image and the image itself are a training pair."""
    return spec.kind == "image" and (spec.scale or 1) > 1 and spec.input_shape[0] == spec.output_shape[0]


def downsampled(images: Tensor, spec: GeneratorSpec) -> Tensor:
    """Images (B, C, H, W) downsampled to the input size (bicubic, antialiased: the usual degradation of super-resolution)."""
    height, width = spec.input_shape[1:]
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
