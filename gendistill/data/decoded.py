"""Images, their latents and the teacher's reconstructions: encoded and decoded once, kept on disk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.data.batches import LatentData
from gendistill.data.cached import (
    CachedData,
    ImageRowMaker,
    Progress,
    RowMaker,
    batched,
    cached_images,
    cached_rows,
    image_source,
)
from gendistill.data.data_config import DataConfig
from gendistill.data.encode import prepare_data
from gendistill.data.images import as_tensor, from_bytes, in_bytes
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.framing import Framing
from gendistill.diffusion.teacher import Teacher
from gendistill.runtime.device import to_device
from gendistill.runtime.hashing import chance
from gendistill.runtime.random import PerSampleRandom
from gendistill.runtime.store import Skipped, StoredPart
from gendistill.samplers import images_at_once
from gendistill.samplers.codec import Codec


@dataclass(frozen=True)
class DecodedBatch:
    """Images (B, 3, H, W) in [-1, 1], their latents (B, C, h, w), and the images that the teacher decodes from the latents."""

    images: Tensor
    latents: Tensor
    decoded: Tensor


class DecodedData(CachedData):
    """Cached images, latents and decoded images by row."""

    def batch(self, rows: Tensor, random: PerSampleRandom | None, device: torch.device | str = "cpu") -> DecodedBatch:
        tensors = self.cache.rows(rows)
        images, decoded = (from_bytes(to_device(tensors[name], device)) for name in ("images", "decoded"))
        return DecodedBatch(images, to_device(tensors["latents"], device).float(), decoded)


def prepare_decoded(
    config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None, copies: int = 1
) -> DecodedData:
    """The images of `data.path` and their reconstructions; without a path, images that the teacher generates from prompts.

    Args:
        copies: rows per image of `data.path`: the image and `copies` - 1 augmentations (random flip, shift and colour jitter).

    Raises:
        ValueError: as `prepare_data`.
    """
    if config.path is None:
        latents = prepare_data(config, teacher, seed, progress)
        return DecodedData(cached_rows(config.cache, DecodedLatents(latents, teacher.codec)))
    if config.crop == "buckets":
        raise ValueError("data.crop buckets: a decoder is trained on images of one size; expects center or random")
    framing = Framing.from_settings(config.crop, teacher.size, teacher.codec.factor, seed)
    maker = ReconstructedImages(image_source(config, seed), framing, teacher.codec, copies, seed if copies > 1 else 0)
    return DecodedData(cached_images(config.cache, maker, progress))


@dataclass(frozen=True)
class ReconstructedImages(ImageRowMaker):
    """Images, `copies` - 1 augmentations of each by `seed`, their latents and the reconstructions."""

    source: ImageSource
    framing: Framing
    codec: Codec
    copies: int
    seed: int

    def make(self, items: list[Entry], progress: Progress | None) -> StoredPart:
        images = []
        skipped: list[Skipped] = []
        for _, sample in self.source.decoded(items, skipped):
            image = as_tensor(self.framing.frame(sample.image, sample.key))
            images += _augmented(image, sample.key, self.copies, self.seed)
        if not images:
            return StoredPart({}, skipped)
        batches = batched(images, images_at_once(max(self.framing.sizes[0])))
        rows = [_rows(self.codec, torch.stack(batch), progress) for batch in batches]
        return StoredPart({"images": {name: torch.cat([batch[name] for batch in rows]) for name in rows[0]}}, skipped)


def _augmented(image: Tensor, key: str, copies: int, seed: int) -> list[Tensor]:
    """An image (3, H, W) in [-1, 1] and `copies` - 1 random augmentations, determined by its key and the seed."""
    from torchvision.transforms import v2  # from the extra `data`; only augmentations need it

    margin = max(1, max(image.shape[1:]) // 8)
    augmentation = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop((image.shape[1], image.shape[2]), padding=margin, padding_mode="edge"),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.5),
        ]
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(int(chance("copies", seed, key) * 2**53))
        return [image, *(augmentation(image / 2 + 0.5) * 2 - 1 for _ in range(copies - 1))]


def _rows(codec: Codec, images: Tensor, progress: Progress | None) -> dict[str, Tensor]:
    latents = codec.moments(images).chunk(2, dim=1)[0]
    if progress:
        progress(len(images))
    return {"images": in_bytes(images), "latents": latents.half().cpu(), "decoded": in_bytes(codec.decode(latents))}


@dataclass(frozen=True)
class DecodedLatents(RowMaker[int]):
    """The latents of `data` and the images that `codec` decodes from them."""

    data: LatentData
    codec: Codec

    @property
    def described(self) -> str:
        return self.data.described

    def items(self) -> range:
        return range(len(self.data))

    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        latents = self.data.cache.rows(items)["moments"].float().chunk(2, dim=1)[0]
        batches = latents.split(images_at_once(max(latents.shape[-2:]) * self.codec.factor))
        decoded = torch.cat([in_bytes(self.codec.decode(batch)) for batch in batches])
        return StoredPart({"generated": {"images": decoded, "latents": latents.half(), "decoded": decoded.clone()}})
