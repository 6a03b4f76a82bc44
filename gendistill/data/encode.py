"""Encode once: pictures and captions to cached moments and prompt embeddings, or prompts to the teacher's own latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import nn

from gendistill.config import DataConfig
from gendistill.data.batches import LatentData, as_rows
from gendistill.data.cache import CacheWriter, build_or_open, cache_key
from gendistill.data.pictures import to_tensor
from gendistill.data.samples import PictureSource
from gendistill.data.sources import Prompts, open_source
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.pipeline import Teacher
from gendistill.samplers import FewStepSampler, pictures_at_once

Item = TypeVar("Item")
Progress = Callable[[int], None]
NOTHING_TO_LEARN_ON = "data.path and data.prompts: takes one of them, pictures to learn on or prompts for the teacher to paint"


def prepare_data(config: DataConfig, teacher: Teacher, seed: int, progress: Progress | None = None) -> LatentData:
    """The training data that a config asks for: opened from the cache, or encoded into it first.

    Args:
        progress: called with the number of samples after each encoded batch; not at all if the cache has them.

    Raises:
        ValueError: both of `data.path` and `data.prompts` are given, or neither to a teacher that needs prompts, or there
            is nothing to learn on.
    """
    if config.path is None:
        return _synthesise(training_prompts(config, teacher), config, teacher, seed, progress)
    if config.prompts is not None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    source = open_source(config.path, config.caption, seed)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; takes pictures (data.prompts takes prompts)")
    return _encode(source, config, teacher, progress)


def training_prompts(config: DataConfig, teacher: Teacher) -> Prompts:
    """The prompts that a teacher paints without pictures: those given, or all that it knows."""
    if config.prompts is not None:
        return Prompts(Path(config.prompts))
    if teacher.own_prompts is None:
        raise ValueError(NOTHING_TO_LEARN_ON)
    return Prompts(teacher.own_prompts)


def _encode(source: PictureSource, config: DataConfig, teacher: Teacher, progress: Progress | None) -> LatentData:
    made_by = {
        "source": source.fingerprint(),
        "caption": source.choice.describe(),
        "resolution": teacher.resolution,
        **_fingerprints(teacher.codec.networks),
        **_fingerprints(teacher.prompt_encoders),
    }

    def build(writer: CacheWriter) -> None:
        for samples in batched(source, pictures_at_once(teacher.resolution)):
            pictures = torch.stack([to_tensor(sample.picture, teacher.resolution) for sample in samples])
            moments = teacher.codec.moments(pictures.to(teacher.pipeline.device))
            writer.append(as_rows(moments, _encode_captions(teacher, [sample.caption for sample in samples])))
            if progress:
                progress(len(samples))

    provenance = {**made_by, "described": source.describe()}
    return LatentData(build_or_open(Path(config.cache), cache_key(**made_by), provenance, build))


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

    def build(writer: CacheWriter) -> None:
        sampler = FewStepSampler(teacher.pipeline)
        stock = teacher.pipeline.scheduler
        teacher.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(stock.config)
        try:
            for numbers in batched(range(config.num_synthetic), pictures_at_once(teacher.resolution)):
                texts = [prompts.prompts[number % len(prompts)] for number in numbers]
                (latents,) = sampler.latents(
                    texts,
                    [seed * 1_000_003 + number for number in numbers],
                    num_inference_steps=config.synthetic_steps,
                    guidance_scale=config.synthetic_guidance if teacher.drawing.guided else 1.0,
                    batch_size=len(texts),
                )
                moments = torch.cat([latents, torch.zeros_like(latents)], dim=1)
                writer.append(as_rows(moments, _encode_captions(teacher, texts)))
                if progress:
                    progress(len(texts))
        finally:
            teacher.pipeline.scheduler = stock

    provenance = {**made_by, "described": prompts.describe()}
    return LatentData(build_or_open(Path(config.cache), cache_key(**made_by), provenance, build))


def _encode_captions(teacher: Teacher, captions: list[str]) -> Conditioning:
    """Each distinct caption of a batch once."""
    distinct = sorted(set(captions))
    place = {caption: number for number, caption in enumerate(distinct)}
    return teacher.encode_prompts(distinct)[torch.tensor([place[caption] for caption in captions])]


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


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
