"""Pictures from prompts in few steps: the stock pipeline, driven as the student wants, the same at any batch size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .families import Conditions, family_of
from .opening import open_student
from .spec import StudentSpec

TEACHER_STEPS, TEACHER_GUIDANCE = 50, 7.5
PIXELS_AT_ONCE = 2**19  # a VAE in float32 takes 1 to 2 KB for each of them


class FewStepSampler:
    """Draws from a diffusers pipeline of any family that is supported, a student of ours or any other.

    Picture k depends on its own seed and prompt only, not on the batch that it is drawn in. Each distinct prompt is
    encoded once and kept. What a prompt is, the family says: a text, the number of a class, or anything for a model
    without conditions.

    Args:
        pipeline: a loaded diffusers pipeline.
        spec: how it wants to be sampled; None for a pipeline that is no student.
        eta: the share of fresh noise in a step, for schedulers that know one; the spec's where None.
    """

    def __init__(self, pipeline: Any, spec: StudentSpec | None = None, eta: float | None = None) -> None:
        self.pipeline, self.spec, self.family = pipeline, spec, family_of(pipeline)
        self.eta = eta if eta is not None else spec.eta if spec else 0.0
        self._encoded: dict[str, Conditions] = {}
        self._unconditional: Conditions | None = None
        pipeline.set_progress_bar_config(disable=True)

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        *,
        config: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> FewStepSampler:
        """Open a student folder or LoRA, or any model that `open_pipeline` takes; ValueError if it is none."""
        pipeline, spec = open_student(folder, config=config, revision=revision, dtype=dtype)
        return FewStepSampler(pipeline.to(device), spec)

    @property
    def default_steps(self) -> int:
        """The step count to sample with where nothing else is asked for."""
        return self.spec.num_inference_steps[0] if self.spec else TEACHER_STEPS

    @property
    def default_guidance_scale(self) -> float:
        if self.spec:
            return self.spec.pipeline_guidance_scale
        return TEACHER_GUIDANCE if self.family.guided else 1.0

    @property
    def resolution(self) -> int:
        """Pixels along an edge of the model's pictures."""
        return self.pipeline.unet.config.sample_size * getattr(self.pipeline, "vae_scale_factor", 1)

    @cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 of all weights, adapters too, as they are when it is first asked for."""
        digest = hashlib.sha256()
        modules = {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        for name, module in sorted(modules.items()):
            for key, weight in sorted(module.state_dict().items()):
                digest.update(f"{name}/{key} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    @property
    def own_prompts(self) -> list[str] | None:
        """All prompts that the model knows; None where it takes any text."""
        return self.family.own_prompts(self.pipeline)

    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Batches of latents (B, C, h, w), scaled as the network sees them, in the order of the prompts.

        Args:
            seeds: one a prompt; the noise of picture k is `torch.Generator().manual_seed(seeds[k])`'s on the CPU.
            guidance_scale: as the pipeline's own; the spec's where None.
            batch_size: what `pictures_at_once` says where None.
            progress: called with the number of pictures after each batch.
        """
        for batch in self._run(prompts, seeds, num_inference_steps, guidance_scale, batch_size, latent=True):
            yield batch
            if progress:
                progress(len(batch))

    def pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Batches of pictures (B, 3, H, W), float32 in [0, 1]; arguments as for `latents`."""
        for batch in self._run(prompts, seeds, num_inference_steps, guidance_scale, batch_size, latent=False):
            yield batch.float()
            if progress:
                progress(len(batch))

    @torch.no_grad()
    def _run(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None,
        guidance_scale: float | None,
        batch_size: int | None,
        *,
        latent: bool,
    ) -> Iterator[Tensor]:
        steps = self.default_steps if steps is None else steps
        guidance_scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        batch_size = batch_size or pictures_at_once(self.resolution)
        if guidance_scale > 1 and not self.family.guided:
            raise ValueError(f"guidance_scale {guidance_scale:g}: a {type(self.pipeline).__name__} knows no guidance; takes 1")
        if guidance_scale > 1 and self._unconditional is None:
            self._unconditional = self.family.unconditional(self.pipeline)
        for start in range(0, len(prompts), batch_size):
            yield self.family.draw(
                self.pipeline,
                self._encode(list(prompts[start : start + batch_size])),
                self._unconditional or {},
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                eta=self.eta,
                generators=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                latent=latent,
            )

    def _encode(self, prompts: list[str]) -> Conditions:
        """The conditions (B, ...) of prompts; those seen before cost nothing."""
        new = sorted(set(prompts) - self._encoded.keys())
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            encoded = self.family.encode(self.pipeline, part)
            self._encoded.update({prompt: {name: t[k] for name, t in encoded.items()} for k, prompt in enumerate(part)})
        rows = [self._encoded[prompt] for prompt in prompts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def pictures_at_once(resolution: int, most: int = 64) -> int:
    """How many pictures to draw, encode or decode together: 64 of 64 pixels, 2 of 512, 1 of 1024."""
    return min(most, max(1, PIXELS_AT_ONCE // resolution**2))


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] to uint8, rounded as diffusers rounds them when it makes PIL images."""
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
