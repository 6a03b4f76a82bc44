"""Encode once: images and captions to cached moments and prompt embeddings, or prompts to the teacher's own latents."""

from __future__ import annotations

from functools import partial
from math import isqrt
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from gendistill.data.batches import LatentData, as_rows
from gendistill.data.cached import Progress, batched, cached_images, cached_rows, image_source
from gendistill.data.data_config import DataConfig
from gendistill.data.images import as_tensor
from gendistill.data.provenance import codec_provenance, fingerprints, teacher_provenance
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.framing import Framing
from gendistill.data.sources.prompts import Prompts
from gendistill.diffusion.teacher import Teacher
from gendistill.runtime.store import Skipped, StoredPart
from gendistill.samplers import FewStepSampler, images_at_once
from gendistill.samplers.conditioning import Conditioning

NOTHING_TO_LEARN_ON = (
    "data.path and data.prompts: expects one of them, images to learn on or prompts for the teacher to generate"
)


def prepare_data(config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None) -> LatentData:
    """The training data that a config asks for: opened from the cache, or encoded into it first.

    Processes that call it at the same time share the encoding, and all return when it is done.

    Args:
        progress: called with the number of samples after each batch that this process encodes; not at all if the cache has
            them.

    Raises:
        ValueError: both of `data.path` and `data.prompts` are given, or neither to a teacher that needs prompts, there is
            nothing to learn on, or more than `gendistill.data.cached.MAX_BROKEN` of the images are broken.
    """
    if config.path is None:
        return _synthesise(training_prompts(config, teacher), config, teacher, seed, progress)
    if config.prompts is not None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return _encode(image_source(config, seed), config, teacher, seed, progress)


def training_prompts(config: DataConfig, teacher: Teacher) -> Prompts:
    """The prompts that a teacher generates without images: those given, or all that it knows."""
    if config.prompts is not None:
        return Prompts(Path(config.prompts))
    if teacher.own_prompts is None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return Prompts(teacher.own_prompts)


def training_texts(config: DataConfig, teacher: Teacher, data: LatentData, seed: int) -> list[str]:
    """The prompt of every row of what `prepare_data` gave for the same arguments; no image is decoded for it."""
    if config.path is None:
        prompts = training_prompts(config, teacher).prompts
        return [prompts[number % len(prompts)] for number in range(len(data))]
    source = image_source(config, seed)
    skipped = data.cache.skipped_keys()
    return [source.caption_of(entry) for entry in source.entries() if entry.key not in skipped]


def _encode(source: ImageSource, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    framing = Framing.of(config.crop, teacher.resolution, teacher.family.size_multiple(teacher.pipeline), seed)
    key_parts = {
        "caption": source.choice.describe(),
        "missing_caption": config.missing_caption,
        "sizes": framing.sizes,
        "crop": config.crop,
        "crop_seed": framing.seed,
        **codec_provenance(teacher.codec),
        **fingerprints(teacher.prompt_encoders),
    }
    encode = partial(_encode_part, source, framing, config.missing_caption, teacher, progress)
    return LatentData(cached_images(config, source, key_parts, encode))


def _encode_part(
    source: ImageSource,
    framing: Framing,
    missing_caption: str,
    teacher: Teacher,
    progress: Progress | None,
    entries: list[Entry],
) -> StoredPart:
    """Encode some entries; images of one size share their batches."""
    framed: dict[tuple[int, int], list[tuple[str, Image.Image, str]]] = {}
    skipped: list[Skipped] = []
    missing = 0
    for entry, sample in source.decoded(entries, skipped):
        if not sample.caption and missing_caption == "error":
            raise ValueError(
                f"data: {entry.key!r} of {source.describe()} has no caption; data.missing_caption takes empty or skip"
            )
        if not sample.caption and missing_caption == "skip":
            skipped.append(Skipped(entry.key, "it has no caption", broken=False))
            continue
        missing += not sample.caption
        image = framing.frame(sample.image, sample.key)
        framed.setdefault((image.height, image.width), []).append((sample.key, image, sample.caption))
    groups = {}
    for (height, width), of_size in sorted(framed.items()):
        batches = []
        for batch in batched(of_size, images_at_once(isqrt(height * width))):
            batches.append(_encode_batch(teacher, batch))
            if progress:
                progress(len(batch))
        groups[f"{height}x{width}"] = {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}
    return StoredPart(groups, skipped, {"missing_captions": missing})


def _encode_batch(teacher: Teacher, batch: list[tuple[str, Image.Image, str]]) -> dict[str, Tensor]:
    images = torch.stack([as_tensor(image) for _, image, _ in batch])
    rows = as_rows(
        teacher.codec.moments(images.to(teacher.pipeline.device)),
        _encode_captions(teacher, [caption for _, _, caption in batch], (images.shape[-2], images.shape[-1])),
        teacher.family.cache_dtype,
    )
    return _finite(rows, "encoding", [key for key, _, _ in batch])


def _finite(rows: dict[str, Tensor], what: str, keys: list[str]) -> dict[str, Tensor]:
    """The rows; ValueError, with the first one's key, where numbers are not finite."""
    finite = torch.stack([tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in rows.values()]).all(0)
    if not finite.all():
        key = keys[int(finite.int().argmin())]
        raise ValueError(f"data: {what} {key!r} gives numbers that are not finite; expects dtype float32 or bfloat16")
    return rows


def _synthesise(prompts: Prompts, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    """Data-free: the teacher generates `num_synthetic` images of the prompts, which stay latents."""
    key_parts = {
        "prompts": prompts.fingerprint(),
        "number": config.num_synthetic,
        "steps": config.synthetic_steps,
        "guidance_scale": config.synthetic_guidance,
        "seed": seed,
        **teacher_provenance(teacher),
    }
    sampler = FewStepSampler(teacher.pipeline)

    def generate(numbers: list[int]) -> StoredPart:
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
        return StoredPart({"generated": _finite(rows, "generating", texts)})

    number = config.num_synthetic
    return LatentData(cached_rows(config.cache, key_parts, prompts.describe(), lambda: range(number), generate))


def _encode_captions(teacher: Teacher, captions: list[str], size: tuple[int, int] | None = None) -> Conditioning:
    """Each distinct caption of a batch once; the images are of `size`."""
    distinct = sorted(set(captions))
    place = {caption: number for number, caption in enumerate(distinct)}
    return teacher.encode_prompts(distinct, size)[torch.tensor([place[caption] for caption in captions])]
