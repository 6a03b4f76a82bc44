"""A disk cache of the images that a model has sampled, by prompt and seed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill.evaluation.extraction import Advance
from gendistill.runtime.store import Store, StoredPart, cache_key
from gendistill.samplers import Sampler, images_at_once, to_uint8

BATCH_SIZE = 100  # maximum


class ImageCache:
    """The images that a sampler generates at one step count and guidance scale, stored one per part.

    The key includes the weights, the scheduler, the guidance scale and the dtype, so entries never become outdated. An
    interrupted run resumes with the missing images.

    Args:
        root: folder of all image caches.
    """

    def __init__(self, root: Path, sampler: Sampler, steps: int, guidance_scale: float) -> None:
        self.sampler, self.steps, self.guidance_scale = sampler, steps, guidance_scale
        self.store = Store(root, _provenance(sampler, steps, guidance_scale), f"images in {steps} steps")

    @staticmethod
    def key_of(sampler: Sampler, steps: int, guidance_scale: float) -> str:
        """A hash of everything that an image depends on except its prompt and seed: 16 hex digits."""
        return cache_key(**_provenance(sampler, steps, guidance_scale))

    @property
    def seconds_per_image(self) -> float | None:
        """Mean time of all images that were generated into the cache, in batches; None if there are none."""
        totals = self.store.notes()
        return totals["seconds"] / totals["images"] if totals else None

    def images(self, prompts: Sequence[str], seeds: Sequence[int], progress: Advance = None) -> Iterator[Tensor]:
        """Batches of images uint8 (B, 3, H, W), one per prompt and seed, in their order; missing images are sampled.

        Raises:
            ValueError: the images cannot be written.
        """
        batch_size = images_at_once(self.sampler.resolution, BATCH_SIZE)
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self._batch(list(prompts[part]), list(seeds[part]))
            if progress:
                progress(len(prompts[part]))

    def _batch(self, prompts: list[str], seeds: list[int]) -> Tensor:
        names = [_name_of(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        parts = [self.store.read(name) for name in names]
        images = [None if part is None else part["image/image"][0] for part in parts]
        missing = [number for number, image in enumerate(images) if image is None]
        if missing:
            started = time.perf_counter()
            inputs = [prompts[number] for number in missing], [seeds[number] for number in missing]
            generated = torch.cat(list(generate(self.sampler, *inputs, self.steps, self.guidance_scale)))
            notes = {"images": 1, "seconds": (time.perf_counter() - started) / len(missing)}
            for number, image in zip(missing, generated, strict=True):
                images[number] = image
                self.store.write(names[number], StoredPart({"image": {"image": image[None]}}, notes=notes))
        return torch.stack([image for image in images if image is not None])


def generate(
    sampler: Sampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    progress: Advance = None,
) -> Iterator[Tensor]:
    """Batches of images uint8 (B, 3, H, W) on the CPU, one per prompt and seed."""
    batches = sampler.images(
        prompts,
        seeds,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        batch_size=images_at_once(sampler.resolution, BATCH_SIZE),
        progress=progress,
    )
    return (to_uint8(batch).cpu() for batch in batches)


def _provenance(sampler: Sampler, steps: int, guidance_scale: float) -> dict[str, Any]:
    return dict(json.loads(json.dumps(sampler.described(steps, guidance_scale), default=str)))


def _name_of(prompt: str, seed: int) -> str:
    return hashlib.sha256(json.dumps([prompt, seed]).encode()).hexdigest()[:20]
