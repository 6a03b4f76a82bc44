"""A tiny autoencoder in the latent space of a large one: diffusers' `AutoencoderTiny`, the architecture of TAESD.

Its latents have about unit variance, as the latents of the denoiser, so it replaces the large autoencoder in a pipeline.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from gendistill.samplers.codec import LatentCodec
from gendistill.samplers.missing_weights import open_network
from gendistill.training.ema import MovingAverage

FASTEST = torch.channels_last  # the fastest memory format of weights on a CPU


def tiny_autoencoder(vae: Any, width: int = 64, blocks: int | Sequence[int] = 3) -> Any:
    """An `AutoencoderTiny` of random weights with the latent space and the resolution of `vae`, an `AutoencoderKL`.

    Args:
        width: channels of every layer.
        blocks: number of blocks at each resolution but the finest, which has one (TAESD: width 64, 3 blocks); or a list of one
            number for each resolution, the coarsest first. Blocks at the finest resolution cost the most; with 0 blocks the
            finest feature maps are interpolated.

    Raises:
        ValueError: the list has not one number for each resolution, or the numbers are out of range.
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
    """A trained `AutoencoderTiny`, to initialise a student for the latent space of `vae` from.

    Args:
        source: a pipeline folder whose `vae` is an `AutoencoderTiny`, or the folder or the hub id of one.

    Raises:
        ValueError: it cannot be opened, or its latents have another shape than those of `vae`.
    """
    folder = Path(source) / "vae"
    try:
        opened = open_network(AutoencoderTiny, folder if folder.is_dir() else source, source, "vae")
    except ValueError as error:
        raise ValueError(f"decoder.start {source}: cannot be opened as an AutoencoderTiny: {error}") from error
    student, teacher = opened.config, vae.config
    levels = {len(student["decoder_block_out_channels"]), len(student["encoder_block_out_channels"])}
    if student["latent_channels"] != teacher["latent_channels"] or levels != {len(teacher["block_out_channels"])}:
        raise ValueError(
            f"decoder.start {source}: has latents of {student['latent_channels']} channels, {2 ** (max(levels) - 1)} pixels "
            f"wide; expects {teacher['latent_channels']} channels, {2 ** (len(teacher['block_out_channels']) - 1)} pixels, as "
            "the teacher's are"
        )
    return opened


@dataclass
class TinyNetworks(MovingAverage):
    """The networks of decoder distillation: the student, its EMA, and the teacher.

    Attributes:
        decoder, encoder: the two halves of the trained student, wrapped for distributed training.
        average: an `AutoencoderTiny` with the EMA weights; the run saves it as the student.
    """

    teacher: LatentCodec
    decoder: Any
    encoder: Any
    average: Any
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    averaged: dict[str, nn.Parameter] = field(default_factory=dict)
    shards = False


def tiny_networks(teacher: LatentCodec, student: Any) -> TinyNetworks:
    """The networks for a student that is initialised as `student`, in float32, on its teacher's device."""
    student = student.to(teacher.vae.device, memory_format=FASTEST).float().train().requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
    trained, averaged = dict(student.named_parameters()), dict(average.named_parameters())
    return TinyNetworks(teacher, student.decoder, student.encoder, average, trained, averaged)


@torch.no_grad()
def decoded_by(autoencoder: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] that an `AutoencoderTiny` decodes from latents (B, C, h, w)."""
    return autoencoder.decode(latents).sample.float().clamp(-1, 1)


@torch.no_grad()
def encoded_by(autoencoder: Any, images: Tensor) -> Tensor:
    """Latents (B, C, h, w), of about unit variance, that an `AutoencoderTiny` encodes from images (B, 3, H, W) in [-1, 1]."""
    return autoencoder.encode(images).latents.float()
