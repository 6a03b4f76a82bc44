"""What a model has sampled, kept on disk: an image of a prompt and seed is sampled once, whoever asks for it."""

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

BATCH_SIZE = 100  # at most


class ImageCache:
    """The images that one sampler generates in one number of steps at one guidance scale: in the store, one a part.

    A model with other weights, another scheduler, guidance scale or dtype has a key of its own, so nothing in it is ever out
    of date; what a crash left half done is gone on with.

    Args:
        root: of all image_caches.
    """

    def __init__(self, root: Path, sampler: Sampler, steps: int, guidance_scale: float) -> None:
        self.sampler, self.steps, self.guidance_scale = sampler, steps, guidance_scale
        self.store = Store(root, _provenance(sampler, steps, guidance_scale), f"images in {steps} steps")

    @staticmethod
    def key_of(sampler: Sampler, steps: int, guidance_scale: float) -> str:
        """Of everything that an image depends on beside its prompt and seed: 16 hex digits."""
        return cache_key(**_provenance(sampler, steps, guidance_scale))

    @property
    def seconds_per_image(self) -> float | None:
        """Of all that was generated into it, in batches; None before."""
        noted = self.store.notes()
        return noted["seconds"] / noted["images"] if noted else None

    def images(self, prompts: Sequence[str], seeds: Sequence[int], progress: Advance = None) -> Iterator[Tensor]:
        """Batches of images uint8 (B, 3, H, W), one a prompt and seed, in their order; sampled where they are not there.

        Raises:
            ValueError: the disk does not take them.
        """
        batch_size = images_at_once(self.sampler.resolution, BATCH_SIZE)
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self._batch(list(prompts[part]), list(seeds[part]))
            if progress:
                progress(len(prompts[part]))

    def _batch(self, prompts: list[str], seeds: list[int]) -> Tensor:
        names = [_name_of(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        found = [self.store.read(name) for name in names]
        images = [None if part is None else part["image/image"][0] for part in found]
        missing = [number for number, image in enumerate(images) if image is None]
        if missing:
            started = time.perf_counter()
            asked = [prompts[number] for number in missing], [seeds[number] for number in missing]
            generated = torch.cat(list(generate(self.sampler, *asked, self.steps, self.guidance_scale)))
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
    """Batches of images uint8 (B, 3, H, W) on the CPU, one a prompt and seed."""
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
