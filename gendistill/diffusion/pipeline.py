"""A teacher, loaded from a folder or a hub id and taken apart into denoiser, codec and prompt encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import nn

from gendistill.diffusion.codec import LatentCodec
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser, call_unet_2d_condition
from gendistill.schedulers import NoiseSchedule

FAMILIES = {"StableDiffusionPipeline": "stable-diffusion"}


@dataclass(frozen=True)
class Teacher:
    """A diffusion pipeline and what training needs of it. Nothing in it is trained."""

    source: str
    family: str
    pipeline: StableDiffusionPipeline
    denoiser: Denoiser
    codec: LatentCodec

    @property
    def network(self) -> nn.Module:
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


def load_teacher(
    source: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Teacher:
    """Open a diffusers pipeline folder or hub id as a teacher.

    Only safetensors weights are read, and no code from the folder is run.

    Raises:
        ValueError: nothing is there, it is not a pipeline, or its family is not supported.
    """
    pipeline = load_pipeline(source, dtype=dtype)
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise ValueError(f"teacher {source}: family {name} is not supported; takes {', '.join(FAMILIES)}")
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
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


def load_pipeline(source: str | Path, *, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A diffusers pipeline from a folder or a hub id, with one clear sentence where that fails."""
    folder = Path(source)
    looks_local = folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1
    if looks_local and not (folder / "model_index.json").is_file():
        state = "has no model_index.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"model {source} {state}; takes a diffusers pipeline folder or a hub id such as user/name")
    try:
        return DiffusionPipeline.from_pretrained(
            str(source), torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: {reason}") from error
