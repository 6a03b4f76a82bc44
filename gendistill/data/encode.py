"""Encode the training data once: images and captions to cached moments and prompt embeddings, or prompts to latents that the
teacher generates."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gendistill.data.batches import LatentData, as_rows
from gendistill.data.cached import ImageRowMaker, Progress, RowMaker, batched, cached_images, cached_rows, image_source
from gendistill.data.data_config import DataConfig
from gendistill.data.images import as_tensor
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.framing import Framing
from gendistill.data.sources.prompts import Prompts
from gendistill.diffusion.teacher import PromptEncoder, Teacher
from gendistill.runtime.store import Skipped, StoredPart
from gendistill.samplers import dpm_solver_path, images_at_once
from gendistill.samplers.codec import Codec
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction, trailing

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
    if config.path is None and (config.trigger is not None or config.prior_fraction):
        name = "data.prior_fraction" if config.trigger is None else "data.trigger"
        raise ValueError(f"{name}: there are no images to learn; expects data.path")
    if config.path is None:
        return generated_latents(config, teacher, training_prompts(config, teacher), config.num_synthetic, seed, progress)
    if config.prompts is not None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    source = training_source(config, teacher, seed)
    if teacher.own_prompts is None:
        source.require_captions()
    framing = Framing.from_settings(config.crop, teacher.size, teacher.family.size_multiple(teacher.pipeline), seed)
    maker = EncodedImages(source, framing, config.missing_caption, teacher.codec, teacher.prompt_encoder)
    return LatentData(cached_images(config.cache, maker, progress))


def generated_latents(
    config: DataConfig, teacher: Teacher, prompts: Prompts, count: int, seed: int, progress: Progress | None = None
) -> LatentData:
    """`count` latents that the teacher generates from prompts by the settings `synthetic_steps` and `synthetic_guidance`."""
    family, explicit = teacher.family, "synthetic_guidance" in config.model_fields_set
    is_used = family.guided or (family.guidance_input and explicit)
    scale = config.synthetic_guidance if is_used else family.neutral_guidance
    generated = GeneratedLatents(teacher, prompts, count, config.synthetic_steps, scale, seed)
    return LatentData(cached_rows(config.cache, generated, progress))


def training_source(config: DataConfig, teacher: Teacher, seed: int) -> ImageSource:
    """The images of `data.path`; for a teacher with classes, with their names as captions."""
    own = set(teacher.own_prompts or ())
    return image_source(config, seed, own.issuperset if own - {""} else None)


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
    source = training_source(config, teacher, seed)
    skipped = data.cache.skipped_keys()
    texts = [source.caption_of(entry) for entry in source.entries() if entry.key not in skipped]
    return [*texts, *data.prior_texts]


@dataclass(frozen=True)
class EncodedImages(ImageRowMaker):
    """Images and captions, encoded to moments and conditions in batches of images of one size."""

    source: ImageSource
    framing: Framing
    missing_caption: str
    codec: Codec
    prompt_encoder: PromptEncoder

    def make(self, items: list[Entry], progress: Progress | None) -> StoredPart:
        source, missing_caption = self.source, self.missing_caption
        framed: dict[tuple[int, int], list[tuple[str, Image.Image, str]]] = {}
        skipped: list[Skipped] = []
        missing = enlarged = 0
        for entry, sample in source.decoded(items, skipped):
            if not sample.caption and missing_caption == "error":
                raise ValueError(
                    f"data: {entry.key!r} of {source.describe()} has no caption; data.missing_caption must be empty or skip"
                )
            if not sample.caption and missing_caption == "skip":
                skipped.append(Skipped(entry.key, "no caption", broken=False))
                continue
            missing += not sample.caption
            image = self.framing.frame(sample.image, sample.key)
            enlarged += sample.image.height < image.height or sample.image.width < image.width
            framed.setdefault((image.height, image.width), []).append((sample.key, image, sample.caption))
        groups = {}
        for (height, width), samples in sorted(framed.items()):
            batches = []
            for batch in batched(samples, images_at_once(isqrt(height * width))):
                batches.append(self._encoded(batch))
                if progress:
                    progress(len(batch))
            groups[f"{height}x{width}"] = {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}
        return StoredPart(groups, skipped, {"missing_captions": missing, "enlarged": enlarged})

    def _encoded(self, batch: list[tuple[str, Image.Image, str]]) -> dict[str, Tensor]:
        images = torch.stack([as_tensor(image) for _, image, _ in batch])
        size = (images.shape[-2], images.shape[-1])
        rows = as_rows(
            self.codec.moments(images.to(self.prompt_encoder.pipeline.device)),
            _encode_captions(self.prompt_encoder, [caption for _, _, caption in batch], size),
            self.prompt_encoder.family.cache_dtype,
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


@dataclass(frozen=True)
class GeneratedLatents(RowMaker[int]):
    """Data-free distillation: `count` latents that the teacher generates from prompts, with the conditions of the prompts."""

    teacher: Teacher
    prompts: Prompts
    count: int
    steps: int
    guidance_scale: float
    seed: int

    @property
    def described(self) -> str:
        return self.prompts.describe()

    def items(self) -> range:
        return range(self.count)

    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        teacher, prompts = self.teacher, self.prompts.prompts
        texts = [prompts[number % len(prompts)] for number in items]
        size = teacher.size
        conditioning = _encode_captions(teacher.prompt_encoder, texts, size)
        shape = teacher.codec.latent_shape(size)
        seeds = [self.seed * 1_000_003 + number for number in items]
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        means = []
        for rows in torch.arange(len(items)).split(images_at_once(max(size))):
            means.append(self._latents(noise[rows], conditioning[rows]))
            if progress:
                progress(len(rows))
        mean = torch.cat(means)
        moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        stored = as_rows(moments, conditioning, teacher.family.cache_dtype)
        return StoredPart({"generated": _finite(stored, "generating", texts)})

    @torch.no_grad()
    def _latents(self, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents (B, C, h, w) from noise by DPM-Solver++ on the trailing grid, on the CPU."""
        denoiser, unconditional, device = self.teacher.denoiser, self.teacher.unconditional(), self.teacher.pipeline.device
        conditioning = conditioning.to(device)

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            return denoiser.guided(x_t, t, conditioning, unconditional, float(self.guidance_scale))

        timesteps = trailing(self.steps, denoiser.schedule.num_train_timesteps)
        return dpm_solver_path(predict, noise.to(device), timesteps, denoiser.schedule)[:, -1].cpu()


def _encode_captions(encoder: PromptEncoder, captions: list[str], size: tuple[int, int]) -> Conditioning:
    """Embeddings of the captions of images of `size`; each distinct caption of a batch is encoded once."""
    distinct = sorted(set(captions))
    index = {caption: number for number, caption in enumerate(distinct)}
    return encoder.encode(distinct, size)[torch.tensor([index[caption] for caption in captions])]
