"""Pictures with their latents, and what the teacher's decoder makes of these: encoded and decoded once, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from gendistill.data.batches import LatentData
from gendistill.data.cache.building import HASHES, build_or_open
from gendistill.data.cache.row_cache import Cache, Part, Skipped, cache_key
from gendistill.data.encode import (
    PART_SIZE,
    Progress,
    batched,
    decodable,
    prepare_data,
    tell_what_is_missing,
    weights_fingerprint,
)
from gendistill.data.images import as_tensor
from gendistill.data.samples import Entry, PictureSource
from gendistill.data.sources.framing import Framing
from gendistill.data.sources.source import Prompts, open_source
from gendistill.diffusion.teacher import Teacher
from gendistill.run.config import DataConfig
from gendistill.runtime.hashing import HashMemo, chance
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.samplers import pictures_at_once, to_uint8
from gendistill.samplers.codec import LatentCodec


@dataclass(frozen=True)
class DecodedBatch:
    """Pictures (B, 3, H, W) in [-1, 1], their latents (B, C, h, w), and what the teacher decodes of these."""

    pictures: Tensor
    latents: Tensor
    decoded: Tensor


class DecodedData:
    """Cached pictures, latents and decoded pictures, by row."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        return indices_of_step(seed, step, batch_size, len(self))

    def batch(self, rows: Tensor, random: PerSampleRandom | None, device: torch.device | str = "cpu") -> DecodedBatch:
        tensors = self.cache.rows(rows)
        pictures, decoded = (tensors[name].to(device).float() / 127.5 - 1 for name in ("pictures", "decoded"))
        return DecodedBatch(pictures, tensors["latents"].to(device).float(), decoded)

    def summary(self) -> dict[str, Any]:
        return {"rows": len(self), "broken": self.cache.broken, "cache": self.cache.key}


def prepare_decoded(
    config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None, copies: int = 1
) -> DecodedData:
    """The pictures of `data.path`; without it those that the teacher paints of `data.prompts`, which are what is decoded.

    Args:
        copies: rows of each picture of `data.path`: itself, and others that are flipped, moved and coloured at random.

    Raises:
        ValueError: as `prepare_data`.
    """
    if config.path is None:
        return _of_painted(prepare_data(config, teacher, seed, progress), config, teacher.codec)
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; takes pictures (data.prompts takes prompts)")
    if config.crop == "buckets":
        raise ValueError("data.crop buckets: a decoder learns on pictures of one size; takes center or random")
    framing = Framing.of(config.crop, teacher.resolution, teacher.codec.factor, seed)
    hashes = HashMemo(Path(config.cache) / HASHES)
    made_by = {
        "decoded": source.fingerprint(hashes),
        "sizes": framing.sizes,
        "crop": [config.crop, framing.seed],
        **({"copies": [copies, seed]} if copies > 1 else {}),
        **{name: weights_fingerprint(network) for name, network in teacher.codec.networks.items()},
    }
    hashes.keep()

    def parts() -> Iterator[Callable[[], Part]]:
        for entries in batched(source.entries(), PART_SIZE):
            yield partial(_part, source, entries, framing, partial(_copied, copies=copies, seed=seed), teacher.codec, progress)

    cache = build_or_open(Path(config.cache), cache_key(**made_by), {**made_by, "described": source.describe()}, parts)
    tell_what_is_missing(cache, source)
    return DecodedData(cache)


def _part(
    source: PictureSource,
    entries: list[Entry],
    framing: Framing,
    copied: Callable[[Tensor, str], list[Tensor]],
    codec: Any,
    progress: Progress | None,
) -> Part:
    pictures = []
    skipped: list[Skipped] = []
    for _, sample in decodable(source, entries, skipped):
        pictures += copied(as_tensor(framing.frame(sample.picture, sample.key)), sample.key)
    if not pictures:
        return Part({}, skipped)
    rows = [_rows(codec, torch.stack(few), progress) for few in batched(pictures, pictures_at_once(framing.sizes[0][0]))]
    return Part({"pictures": {name: torch.cat([of[name] for of in rows]) for name in rows[0]}}, skipped)


def _copied(picture: Tensor, key: str, copies: int, seed: int) -> list[Tensor]:
    """A picture (3, H, W) in [-1, 1], and `copies` - 1 others like it that its key and the seed decide."""
    margin = max(1, max(picture.shape[1:]) // 8)
    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop((picture.shape[1], picture.shape[2]), padding=margin, padding_mode="edge"),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.5),
        ]
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(int(chance("copies", seed, key) * 2**53))
        return [picture, *(change(picture / 2 + 0.5) * 2 - 1 for _ in range(copies - 1))]


def _rows(codec: LatentCodec, pictures: Tensor, progress: Progress | None) -> dict[str, Tensor]:
    latents = codec.moments(pictures).chunk(2, dim=1)[0]
    if progress:
        progress(len(pictures))
    return {"pictures": _in_bytes(pictures), "latents": latents.half().cpu(), "decoded": _in_bytes(codec.decode(latents))}


def _of_painted(data: LatentData, config: DataConfig, codec: Any) -> DecodedData:
    made_by = {"decoded": data.cache.key, **{name: weights_fingerprint(network) for name, network in codec.networks.items()}}

    def part(rows: list[int]) -> Part:
        latents = data.cache.rows(torch.tensor(rows))["moments"].float().chunk(2, dim=1)[0]
        few = pictures_at_once(latents.shape[-1] * codec.factor)
        decoded = torch.cat([_in_bytes(codec.decode(some)) for some in latents.split(few)])
        return Part({"painted": {"pictures": decoded, "latents": latents.half(), "decoded": decoded}})

    def parts() -> Iterator[Callable[[], Part]]:
        for rows in batched(range(len(data)), PART_SIZE):
            yield partial(part, rows)

    provenance = {**made_by, "described": data.described}
    return DecodedData(build_or_open(Path(config.cache), cache_key(**made_by), provenance, parts))


def _in_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8 on the CPU."""
    return to_uint8(pictures.float() / 2 + 0.5).cpu()
