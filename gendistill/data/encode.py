"""Encode the training data once: images and captions to cached moments and prompt embeddings, or prompts to latents that the
teacher generates."""

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
    "data.path and data.prompts: expects one of them, training images or prompts from which the teacher generates images"
)


def prepare_data(config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None) -> LatentData:
    """The training data of a config, read from the cache or encoded into it first.

    Processes that call this at the same time share the encoding and return when all rows are there.

    Args:
        progress: called with the number of samples after each batch that this process encodes; not called if the cache is
            complete.

    Raises:
        ValueError: both `data.path` and `data.prompts` are set, or neither although the teacher needs prompts; no sample is
            left; or more than the fraction `gendistill.data.cached.MAX_BROKEN` of the images cannot be decoded.
    """
    if config.path is None:
        return _synthesise(training_prompts(config, teacher), config, teacher, seed, progress)
    if config.prompts is not None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return _encode(image_source(config, seed), config, teacher, seed, progress)


def training_prompts(config: DataConfig, teacher: Teacher) -> Prompts:
    """The prompts from which the teacher generates training data: those of `data.prompts`, or all prompts of the teacher."""
    if config.prompts is not None:
        return Prompts(Path(config.prompts))
    if teacher.own_prompts is None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return Prompts(teacher.own_prompts)


def training_texts(config: DataConfig, teacher: Teacher, data: LatentData, seed: int) -> list[str]:
    """The prompt of every row that `prepare_data` returned for the same arguments, without decoding an image."""
    if config.path is None:
        prompts = training_prompts(config, teacher).prompts
        return [prompts[number % len(prompts)] for number in range(len(data))]
    source = image_source(config, seed)
    skipped = data.cache.skipped_keys()
    return [source.caption_of(entry) for entry in source.entries() if entry.key not in skipped]


def _encode(source: ImageSource, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    framing = Framing.from_settings(config.crop, teacher.resolution, teacher.family.size_multiple(teacher.pipeline), seed)
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
    """Encode entries in batches of images of one size."""
    framed: dict[tuple[int, int], list[tuple[str, Image.Image, str]]] = {}
    skipped: list[Skipped] = []
    missing = 0
    for entry, sample in source.decoded(entries, skipped):
        if not sample.caption and missing_caption == "error":
            raise ValueError(
                f"data: {entry.key!r} of {source.describe()} has no caption; data.missing_caption must be empty or skip"
            )
        if not sample.caption and missing_caption == "skip":
            skipped.append(Skipped(entry.key, "no caption", broken=False))
            continue
        missing += not sample.caption
        image = framing.frame(sample.image, sample.key)
        framed.setdefault((image.height, image.width), []).append((sample.key, image, sample.caption))
    groups = {}
    for (height, width), samples in sorted(framed.items()):
        batches = []
        for batch in batched(samples, images_at_once(isqrt(height * width))):
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


def _finite(rows: dict[str, Tensor], task: str, keys: list[str]) -> dict[str, Tensor]:
    """The rows; raises ValueError, which names the first affected key, if values are not finite."""
    finite = torch.stack([tensor.isfinite().reshape(len(tensor), -1).all(1) for tensor in rows.values()]).all(0)
    if not finite.all():
        key = keys[int(finite.int().argmin())]
        raise ValueError(
            f"data: {task} {key!r} gives values that are not finite; expects undamaged weights in float32 or bfloat16"
        )
    return rows


def _synthesise(prompts: Prompts, config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None) -> LatentData:
    """Data-free distillation: the teacher generates `num_synthetic` latents from the prompts."""
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
        original_scheduler = teacher.pipeline.scheduler
        teacher.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(original_scheduler.config)
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
            teacher.pipeline.scheduler = original_scheduler
        moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        rows = as_rows(moments, _encode_captions(teacher, texts), teacher.family.cache_dtype)
        return StoredPart({"generated": _finite(rows, "generating", texts)})

    count = config.num_synthetic
    return LatentData(cached_rows(config.cache, key_parts, prompts.describe(), lambda: range(count), generate))


def _encode_captions(teacher: Teacher, captions: list[str], size: tuple[int, int] | None = None) -> Conditioning:
    """Embeddings of the captions of images of `size`; each distinct caption of a batch is encoded once."""
    distinct = sorted(set(captions))
    index = {caption: number for number, caption in enumerate(distinct)}
    return teacher.encode_prompts(distinct, size)[torch.tensor([index[caption] for caption in captions])]
