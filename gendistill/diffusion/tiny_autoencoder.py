"""A tiny autoencoder in the latent space of a large one: diffusers' `AutoencoderTiny`, the architecture of TAESD.

It takes and gives latents of about unit variance, as the denoiser sees them: it stands in a pipeline where the large one did.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from torch import Tensor, nn

from gendistill.samplers.codec import LatentCodec
from gendistill.samplers.missing_weights import require_loaded
from gendistill.training.ema import MovingAverage

FASTEST = torch.channels_last  # of weights, on a CPU


def tiny_autoencoder(vae: Any, width: int = 64, blocks: int | Sequence[int] = 3) -> Any:
    """A fresh one with the latents and the images of `vae`, an `AutoencoderKL`.

    Args:
        width: channels of every layer.
        blocks: of each resolution but the one with the most pixels, which has one (64 and 3 are TAESD's own); or a number for
            each, the coarsest first. Blocks at the finest cost the most: without any it is interpolated from the one before.

    Raises:
        ValueError: not a number for each resolution.
    """
    config = vae.config
    levels = len(config["block_out_channels"])
    counts = (*(blocks,) * (levels - 1), 1) if isinstance(blocks, int) else tuple(blocks)
    if len(counts) != levels or min(counts) < 0 or counts[0] == 0:
        raise ValueError(
            f"decoder.blocks {blocks}: expects 1 or more, or a list of {levels} numbers, one a resolution, the first above 0"
        )
    return AutoencoderTiny(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        encoder_block_out_channels=(width,) * levels,
        decoder_block_out_channels=(width,) * levels,
        num_encoder_blocks=counts[::-1],
        num_decoder_blocks=counts,
        latent_channels=config["latent_channels"],
        scaling_factor=1.0,
    )


def started_autoencoder(source: str, vae: Any) -> Any:
    """One that has learned before, for the latents and the images of `vae`.

    Args:
        source: a pipeline's folder, whose `vae` is one, or the folder or the hub id of an `AutoencoderTiny`.

    Raises:
        ValueError: it cannot be opened, or has other latents.
    """
    part = {"subfolder": "vae"} if (Path(source) / "vae").is_dir() else {}
    try:
        opened: Any = AutoencoderTiny.from_pretrained(source, use_safetensors=True, **part)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"decoder.start {source}: cannot be opened as an AutoencoderTiny: {why}") from error
    require_loaded(source, {"vae": opened})
    ours, its = opened.config, vae.config
    levels = {len(ours["decoder_block_out_channels"]), len(ours["encoder_block_out_channels"])}
    if ours["latent_channels"] != its["latent_channels"] or levels != {len(its["block_out_channels"])}:
        raise ValueError(
            f"decoder.start {source}: has latents of {ours['latent_channels']} channels, {2 ** (max(levels) - 1)} pixels wide; "
            f"takes {its['latent_channels']} channels, {2 ** (len(its['block_out_channels']) - 1)} pixels, as the teacher's are"
        )
    return opened


@dataclass
class TinyNetworks(MovingAverage):
    """A tiny autoencoder that learns, its average, and the large one that it learns from.

    Attributes:
        decoder, encoder: the two halves of the student, wrapped by whatever the processes need.
        average: an `AutoencoderTiny`, what becomes the student.
    """

    teacher: LatentCodec
    decoder: Any
    encoder: Any
    average: Any
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    averaged: dict[str, nn.Parameter] = field(default_factory=dict)
    shards = False


def tiny_networks(teacher: LatentCodec, student: Any) -> TinyNetworks:
    """Networks whose student starts as `student`, in float32, beside its teacher."""
    student = student.to(teacher.vae.device, memory_format=FASTEST).float().train().requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
    trained, averaged = dict(student.named_parameters()), dict(average.named_parameters())
    return TinyNetworks(teacher, student.decoder, student.encoder, average, trained, averaged)


@torch.no_grad()
def decoded_by(autoencoder: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] that an `AutoencoderTiny` makes of latents (B, C, h, w)."""
    return autoencoder.decode(latents).sample.float().clamp(-1, 1)


@torch.no_grad()
def encoded_by(autoencoder: Any, images: Tensor) -> Tensor:
    """Latents (B, C, h, w), of about unit variance, that it makes of images (B, 3, H, W) in [-1, 1]."""
    return autoencoder.encode(images).latents.float()
