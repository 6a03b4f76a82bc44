"""Pictures from prompts in few steps: the stock pipeline, driven as the student wants, the same at any batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .opening import open_student
from .spec import StudentSpec

TEACHER_STEPS, TEACHER_GUIDANCE = 50, 7.5


class FewStepSampler:
    """Draws from a text-to-image diffusers pipeline, a student of ours or any other.

    Picture k depends on its own seed and prompt only, not on the batch that it is drawn in. Each distinct prompt is
    encoded once and its embedding kept.

    Args:
        pipeline: a loaded diffusers pipeline.
        spec: how it wants to be sampled; None for a pipeline that is no student.
        eta: the share of fresh noise in a step, for schedulers that know one; the spec's where None.
    """

    def __init__(self, pipeline: Any, spec: StudentSpec | None = None, eta: float | None = None) -> None:
        self.pipeline, self.spec = pipeline, spec
        self.eta = eta if eta is not None else spec.eta if spec else 0.0
        self._embeddings: dict[str, Tensor] = {}
        pipeline.set_progress_bar_config(disable=True)

    @staticmethod
    def from_pretrained(
        folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> FewStepSampler:
        """Open a student folder or LoRA (or any diffusers pipeline folder or hub id); ValueError if it is none."""
        pipeline, spec = open_student(Path(folder), dtype=dtype)
        return FewStepSampler(pipeline.to(device), spec)

    @property
    def default_steps(self) -> int:
        """The step count to sample with where nothing else is asked for."""
        return self.spec.num_inference_steps[0] if self.spec else TEACHER_STEPS

    @property
    def default_guidance_scale(self) -> float:
        return self.spec.pipeline_guidance_scale if self.spec else TEACHER_GUIDANCE

    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Batches of latents (B, C, h, w), scaled as the network sees them, in the order of the prompts.

        Args:
            seeds: one a prompt; the noise of picture k is `torch.Generator().manual_seed(seeds[k])`'s on the CPU.
            guidance_scale: as the pipeline's own; the spec's where None.
            progress: called with the number of pictures after each batch.
        """
        for batch in self._run(prompts, seeds, num_inference_steps, guidance_scale, batch_size, "latent"):
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
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Tensor]:
        """Batches of pictures (B, 3, H, W), float32 in [0, 1]; arguments as for `latents`."""
        for batch in self._run(prompts, seeds, num_inference_steps, guidance_scale, batch_size, "pt"):
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
        batch_size: int,
        output_type: str,
    ) -> Iterator[Tensor]:
        steps = self.default_steps if steps is None else steps
        guidance_scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        for start in range(0, len(prompts), batch_size):
            of_batch = list(prompts[start : start + batch_size])
            yield self.pipeline(
                prompt_embeds=self._encode(of_batch),
                negative_prompt_embeds=self._encode([""] * len(of_batch)) if guidance_scale > 1 else None,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                eta=self.eta,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                output_type=output_type,
                return_dict=False,
            )[0]

    def _encode(self, prompts: list[str]) -> Tensor:
        """Text encoder states (B, L, D); prompts seen before cost nothing."""
        new = sorted(set(prompts) - self._embeddings.keys())
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            encoded, _ = self.pipeline.encode_prompt(part, self.pipeline.device, 1, False)
            self._embeddings.update(zip(part, encoded.unbind(), strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] to uint8, rounded as diffusers rounds them when it makes PIL images."""
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
