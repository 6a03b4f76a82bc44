"""Images that the teacher generates from fixed noise or from the input images, once, kept on disk.

A training step then needs no teacher call, whose cost is several times the student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gendistill.data.cached import PART_SIZE, Progress, RowMaker, cached_rows
from gendistill.data.gan_batches import GanBatch, ImageData, NoData
from gendistill.data.images import from_bytes, in_bytes
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.runtime.store import StoredPart
from gendistill.runtime.stored_rows import StoredRows
from gendistill.samplers import images_at_once

PAIRS_SEED = 40_000_003  # differs from every training seed


class PairedData:
    """Cached pairs of noise and teacher image, with real images: a row is the index of a pair and of a real image."""

    def __init__(self, pairs: StoredRows, real: ImageData | NoData) -> None:
        self.pairs, self.real = pairs, real

    def __len__(self) -> int:
        return len(self.pairs)

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """(batch_size, 2): indices of pairs and of real images, each in an independent order."""
        pairs = indices_of_step(seed + 1, step, batch_size, len(self.pairs))
        return torch.stack([pairs, self.real.rows_of_step(seed, step, batch_size)], 1)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        tensors = self.pairs.rows(rows[:, 0].contiguous())
        real = self.real.batch(rows[:, 1].contiguous(), random, device)
        return GanBatch(
            device,
            inputs=to_device(tensors["inputs"], device),
            labels=to_device(tensors["labels"], device) if "labels" in tensors else None,
            generated=from_bytes(to_device(tensors["images"], device)),
            real=real.real,
            real_labels=real.real_labels,
        )

    def summary(self) -> dict[str, Any]:
        return {**self.real.summary(), "pairs": len(self.pairs), "pairs_cache": self.pairs.key}


class PairedImages(ImageData):
    """Input images with the teacher's image of each, in the same row."""

    def __init__(self, pairs: StoredRows, images: ImageData) -> None:
        super().__init__(images.cache, images.spec)
        self.pairs = pairs

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> GanBatch:
        generated = from_bytes(to_device(self.pairs.rows(rows)["images"], device))
        return replace(super().batch(rows, random, device), generated=generated)

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "pairs": len(self.pairs), "pairs_cache": self.pairs.key}


def pair_images(teacher: Generator, data: ImageData, cache: str, progress: Progress | None = None) -> PairedImages:
    """The input images of an image-to-image teacher with its images, read from the cache or generated into it first.

    A batch has no random crops or flips, so that the inputs of a row are always the same. The images are kept as bytes;
    `paired_size` is their size on disk.
    """
    return PairedImages(cached_rows(cache, GeneratedFromImages(teacher, data), progress), data)


def paired_size(spec: GeneratorSpec, data: ImageData) -> int:
    """The bytes on disk of the teacher's images of all input images."""
    return len(data) * math.prod(spec.output_shape)


def generate_pairs(
    teacher: Generator, data: ImageData | NoData, count: int, cache: str, progress: Progress | None = None
) -> PairedData:
    """`count` pairs of a teacher that generates from noise, read from the cache or generated into it first.

    Classes have the frequencies of the real images; without real images they are uniform.

    Raises:
        ValueError: the teacher generates from images.
    """
    if teacher.spec.kind == "image":
        raise ValueError(
            f"gan.pairs {count}: expects a teacher that generates from noise; null or 0 for one that generates from images, "
            "whose pairs are those of data.path"
        )
    return PairedData(
        cached_rows(cache, GeneratedPairs(teacher, data if teacher.spec.num_classes else NoData(), count), progress), data
    )


@dataclass(frozen=True)
class GeneratedPairs(RowMaker[int]):
    """Noise, classes with the frequencies of `data`, and the images that the teacher generates from them."""

    teacher: Generator
    data: ImageData | NoData
    count: int

    @property
    def described(self) -> str:
        return f"{self.count} images that the teacher generated"

    def items(self) -> range:
        return range(self.count)

    @torch.no_grad()
    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        teacher, spec = self.teacher, self.teacher.spec
        device = next(iter(teacher.network.parameters()), torch.empty(0)).device
        random = PerSampleRandom(PAIRS_SEED, 0, items[0], len(items))
        inputs = random.normal(spec.input_shape)
        rows = {"inputs": inputs}
        if spec.num_classes:
            real_rows = self.data.rows_of_step(PAIRS_SEED, items[0] // PART_SIZE, PART_SIZE)[: len(items)]
            real_labels = self.data.batch(real_rows, random).real_labels
            rows["labels"] = (random.uniform() * spec.num_classes).long() if real_labels is None else real_labels
        generated = []
        for part in torch.arange(len(items)).split(images_at_once(max(spec.output_shape[1:]))):
            labels = rows["labels"][part].to(device) if spec.num_classes else None
            generated.append(in_bytes(teacher(inputs[part].to(device), labels)))
            if progress:
                progress(len(part))
        return StoredPart({"pairs": {**rows, "images": torch.cat(generated)}})


@dataclass(frozen=True)
class GeneratedFromImages(RowMaker[int]):
    """The teacher's images of the input images of `data`, in the same rows."""

    teacher: Generator
    data: ImageData

    @property
    def described(self) -> str:
        return f"the teacher's images of {len(self.data)} images"

    def items(self) -> range:
        return range(len(self.data))

    @torch.no_grad()
    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        device = next(iter(self.teacher.network.parameters()), torch.empty(0)).device
        generated = []
        for rows in torch.tensor(items).split(images_at_once(max(self.teacher.spec.output_shape[1:]))):
            batch = self.data.batch(rows, PerSampleRandom(PAIRS_SEED, 0, items[0], len(rows)), device)
            assert batch.inputs is not None
            generated.append(in_bytes(self.teacher(batch.inputs, batch.labels)))
            if progress:
                progress(len(rows))
        return StoredPart({"pairs": {"images": torch.cat(generated)}})
