"""A teacher, loaded from a folder or a hub id and taken apart into denoiser, codec and prompt encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gendistill.diffusion.codec import LatentCodec
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser, call_unet_2d_condition
from gendistill.samplers.opening import open_pipeline
from gendistill.schedulers import NoiseSchedule

FAMILIES = {"StableDiffusionPipeline": "stable-diffusion"}


@dataclass(frozen=True)
class Teacher:
    """A diffusion pipeline and what training needs of it. Nothing in it is trained."""

    source: str
    family: str
    pipeline: Any  # a StableDiffusionPipeline; type checkers cannot see into diffusers' lazy modules
    denoiser: Denoiser
    codec: LatentCodec

    @property
    def network(self) -> Any:
        return self.denoiser.network

    @property
    def resolution(self) -> int:
        """Pixels along an edge of the pictures that it was trained to make."""
        return int(self.network.config["sample_size"]) * self.codec.factor

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Prompts to text encoder states (B, L, D), as the pipeline itself encodes them. "" is the unconditional."""
        embeds, _ = self.pipeline.encode_prompt(prompts, self.pipeline.device, 1, False)
        return Conditioning(prompt_embeds=embeds)


def load_teacher(source: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Teacher:
    """Open a diffusers pipeline folder or hub id as a teacher.

    Only safetensors weights are read, and no code from the folder is run.

    Raises:
        ValueError: nothing is there, it is not a pipeline, or its family is not supported.
    """
    pipeline = open_pipeline(source, dtype=dtype)
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise ValueError(f"teacher {source}: family {name} is not supported; takes {', '.join(FAMILIES)}")
    pipeline.to(device)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    scheduler = pipeline.scheduler
    denoiser = Denoiser(
        pipeline.unet,
        NoiseSchedule.from_scheduler(scheduler),
        scheduler.config.get("prediction_type", "epsilon"),
        call_unet_2d_condition,
    )
    return Teacher(str(source), FAMILIES[name], pipeline, denoiser, LatentCodec(pipeline.vae))
