"""Encode once: pictures and captions to cached moments and prompt embeddings, or prompts to the teacher's own latents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from gendistill.data.batches import LatentData, as_rows
from gendistill.data.cache.building import HASHES, build_or_open
from gendistill.data.cache.row_cache import SKIPPED, Cache, Part, Skipped, cache_key
from gendistill.data.images import as_tensor
from gendistill.data.samples import Entry, PictureSource, Sample
from gendistill.data.sources.framing import Framing
from gendistill.data.sources.source import Prompts, open_source
from gendistill.diffusion.teacher import Teacher
from gendistill.run.config import DataConfig
from gendistill.runtime.hashing import HashMemo
from gendistill.samplers import FewStepSampler, pictures_at_once
from gendistill.samplers.conditioning import Conditioning

Item = TypeVar("Item")
Progress = Callable[[int], None]
NOTHING_TO_LEARN_ON = "data.path and data.prompts: takes one of them, pictures to learn on or prompts for the teacher to paint"
PART_SIZE = 256
MAX_BROKEN = 0.05

logger = logging.getLogger(__name__)


def prepare_data(config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None) -> LatentData:
    """The training data that a config asks for: opened from the cache, or encoded into it first.

    Processes that call it at the same time share the encoding, and all return when it is done.

    Args:
        progress: called with the number of samples after each batch that this process encodes; not at all if the cache has
            them.

    Raises:
        ValueError: both of `data.path` and `data.prompts` are given, or neither to a teacher that needs prompts, there is
            nothing to learn on, or more than `MAX_BROKEN` of the pictures are broken.
    """
    if config.path is None:
        return _synthesise(training_prompts(config, teacher), config, teacher, seed, progress)
    if config.prompts is not None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; takes pictures (data.prompts takes prompts)")
    return _encode(source, config, teacher, seed, progress)


def training_prompts(config: DataConfig, teacher: Teacher) -> Prompts:
    """The prompts that a teacher paints without pictures: those given, or all that it knows."""
    if config.prompts is not None:
        return Prompts(Path(config.prompts))
    if teacher.own_prompts is None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return Prompts(teacher.own_prompts)


def training_texts(config: DataConfig, teacher: Teacher, data: LatentData, seed: int) -> list[str]:
    """The prompt of every row of what `prepare_data` gave for the same arguments; no picture is decoded for it."""
    if config.path is None:
        prompts = training_prompts(config, teacher).prompts
        return [prompts[number % len(prompts)] for number in range(len(data))]
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    assert isinstance(source, PictureSource)  # or there would be no data
    skipped = data.cache.skipped_keys()
    return [source.caption_of(entry) for entry in source.entries() if entry.key not in skipped]


def _encode(source: PictureSource, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    framing = Framing.of(config.crop, teacher.resolution, _pixel_multiple(teacher), seed)
    hashes = HashMemo(Path(config.cache) / HASHES)
    made_by = {
        "source": source.fingerprint(hashes),
        "caption": source.choice.describe(),
        "missing_caption": config.missing_caption,
        "sizes": framing.sizes,
        "crop": config.crop,
        "crop_seed": framing.seed,
        **_fingerprints(teacher.codec.networks),
        **_fingerprints(teacher.prompt_encoders),
    }
    hashes.keep()

    def parts() -> Iterator[Callable[[], Part]]:
        for entries in batched(source.entries(), PART_SIZE):
            yield partial(_encode_part, source, entries, framing, config.missing_caption, teacher, progress)

    provenance = {**made_by, "described": source.describe()}
    cache = build_or_open(Path(config.cache), cache_key(**made_by), provenance, parts)
    tell_what_is_missing(cache, source)
    return LatentData(cache)


def _encode_part(
    source: PictureSource,
    entries: list[Entry],
    framing: Framing,
    missing_caption: str,
    teacher: Teacher,
    progress: Progress | None,
) -> Part:
    """Encode some entries; pictures of one size share their batches."""
    framed: dict[tuple[int, int], list[tuple[str, Image.Image, str]]] = {}
    skipped: list[Skipped] = []
    missing = 0
    for entry, sample in decodable(source, entries, skipped):
        if not sample.caption and missing_caption == "error":
            raise ValueError(
                f"data: {entry.key!r} of {source.describe()} has no caption; data.missing_caption takes empty or skip"
            )
        if not sample.caption and missing_caption == "skip":
            skipped.append(Skipped(entry.key, "it has no caption", broken=False))
            continue
        missing += not sample.caption
        picture = framing.frame(sample.picture, sample.key)
        framed.setdefault((picture.height, picture.width), []).append((sample.key, picture, sample.caption))
    groups = {}
    for (height, width), of_size in sorted(framed.items()):
        batches = []
        for batch in batched(of_size, pictures_at_once(isqrt(height * width))):
            batches.append(_encode_batch(teacher, batch))
            if progress:
                progress(len(batch))
        groups[f"{height}x{width}"] = {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}
    return Part(groups, skipped, missing)


def _encode_batch(teacher: Teacher, batch: list[tuple[str, Image.Image, str]]) -> dict[str, Tensor]:
    pictures = torch.stack([as_tensor(picture) for _, picture, _ in batch])
    rows = as_rows(
        teacher.codec.moments(pictures.to(teacher.pipeline.device)),
        _encode_captions(teacher, [caption for _, _, caption in batch], (pictures.shape[-2], pictures.shape[-1])),
        teacher.family.cache_dtype,
    )
    return _finite(rows, "encoding", [key for key, _, _ in batch])


def _finite(rows: dict[str, Tensor], what: str, keys: list[str]) -> dict[str, Tensor]:
    """The rows; ValueError, with the first one's key, where numbers are not finite."""
    finite = torch.stack([tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in rows.values()]).all(0)
    if not finite.all():
        key = keys[int(finite.int().argmin())]
        raise ValueError(f"data: {what} {key!r} gives numbers that are not finite; takes dtype float32 or bfloat16")
    return rows


def tell_what_is_missing(cache: Cache, source: PictureSource) -> None:
    """A line about what is not as it should be; ValueError if it is too much."""
    pictures = len(cache) + cache.broken + cache.left_out
    listed = f"they are listed in {cache.folder / SKIPPED}"
    if cache.broken > MAX_BROKEN * pictures:
        raise ValueError(
            f"data: {cache.broken} of {pictures} pictures of {source.describe()} cannot be decoded; it takes at most "
            f"{MAX_BROKEN:.0%}; {listed}."
        )
    if not len(cache):
        raise ValueError(f"data: none of {pictures} pictures of {source.describe()} is left; {listed}.")
    if cache.broken or cache.left_out:
        logger.warning("data: %d of %d pictures are left out; %s", cache.broken + cache.left_out, pictures, listed)
    if cache.missing_captions:
        logger.warning("data: %d of %d pictures have no caption: trained as ''", cache.missing_captions, pictures)


def _pixel_multiple(teacher: Teacher) -> int:
    """What the edges of a picture must be multiples of: 64 for Stable Diffusion."""
    config: Any = teacher.network.config
    return teacher.codec.factor * 2 ** (len(config["block_out_channels"]) - 1) if "block_out_channels" in config else 64


def _synthesise(prompts: Prompts, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    """Data-free: the teacher paints `num_synthetic` pictures of the prompts, which stay latents."""
    made_by = {
        "prompts": prompts.fingerprint(),
        "number": config.num_synthetic,
        "steps": config.synthetic_steps,
        "guidance_scale": config.synthetic_guidance,
        "seed": seed,
        "network": weights_fingerprint(teacher.network),
        **_fingerprints(teacher.prompt_encoders),
    }
    sampler = FewStepSampler(teacher.pipeline)

    def paint(numbers: list[int]) -> Part:
        texts = [prompts.prompts[number % len(prompts)] for number in numbers]
        stock = teacher.pipeline.scheduler
        teacher.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(stock.config)
        try:
            latents = sampler.latents(
                texts,
                [seed * 1_000_003 + number for number in numbers],
                num_inference_steps=config.synthetic_steps,
                guidance_scale=config.synthetic_guidance if teacher.family.guided else 1.0,
                progress=progress,
            )
            mean = torch.cat(list(latents))
        finally:
            teacher.pipeline.scheduler = stock
        moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        rows = as_rows(moments, _encode_captions(teacher, texts), teacher.family.cache_dtype)
        return Part({"painted": _finite(rows, "painting", texts)})

    def parts() -> Iterator[Callable[[], Part]]:
        for numbers in batched(range(config.num_synthetic), PART_SIZE):
            yield partial(paint, numbers)

    provenance = {**made_by, "described": prompts.describe()}
    return LatentData(build_or_open(Path(config.cache), cache_key(**made_by), provenance, parts))


def _encode_captions(teacher: Teacher, captions: list[str], size: tuple[int, int] | None = None) -> Conditioning:
    """Each distinct caption of a batch once; the pictures are of `size`."""
    distinct = sorted(set(captions))
    place = {caption: number for number, caption in enumerate(distinct)}
    return teacher.encode_prompts(distinct, size)[torch.tensor([place[caption] for caption in captions])]


def _fingerprints(networks: dict[str, nn.Module]) -> dict[str, str]:
    return {name: weights_fingerprint(network) for name, network in networks.items()}


def weights_fingerprint(network: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights, wherever they were loaded from; adapters on it do not count."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        digest.update(name.replace(".base_layer.", ".").encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def decodable(source: PictureSource, entries: Iterable[Entry], skipped: list[Skipped]) -> Iterator[tuple[Entry, Sample]]:
    """Entries with their pictures, decoded one by one; those that cannot be are added to `skipped`."""
    for entry in entries:
        try:
            sample = source.decode(entry)
        except ValueError as error:
            skipped.append(Skipped(entry.key, str(error)))
        else:
            yield entry, sample


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
