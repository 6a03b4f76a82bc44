"""Encoding images into the space of the diffusion, and decoding them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


class LatentCodec:
    """An `AutoencoderKL` with its scaling: images in [-1, 1] to latents of about unit variance and back.

    A VAE in float16 is computed in float32 if its config has `force_upcast`, as SDXL's has.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        config = vae.config
        self.scaling_factor: float = config["scaling_factor"]
        self.shift_factor: float = config.get("shift_factor") or 0.0
        self.factor: int = 2 ** (len(config["block_out_channels"]) - 1)
        self.channels: int = config["latent_channels"]

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return self.channels, resolution // self.factor, resolution // self.factor

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and standard deviation (B, 2 C, h, w) of the latents of images (B, 3, H, W) in [-1, 1].

        The cache holds these moments, so that a new latent is sampled from them in each epoch.
        """
        with self._without_overflow():
            posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        mean = (posterior.mean.float() - self.shift_factor) * self.scaling_factor
        return torch.cat([mean, posterior.std.float() * self.scaling_factor], dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), float in [-1, 1], of latents (B, C, h, w)."""
        with self._without_overflow():
            return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Images with gradients, which may lie slightly outside of [-1, 1]. A VAE in float16 may overflow here.

        The VAE computes in the dtype of its weights under any autocast.
        """
        unscaled = latents / self.scaling_factor + self.shift_factor
        with torch.autocast(self.vae.device.type, enabled=False):
            return self.vae.decode(unscaled.to(self.vae.device, self.vae.dtype)).sample.float()

    @contextmanager
    def _without_overflow(self) -> Iterator[None]:
        upcast = self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast")
        if upcast:
            self.vae.float()
        yield
        if upcast:
            self.vae.half()


class PixelCodec:
    """The identity, for pixel-space models: the moments have standard deviation zero."""

    channels = 3
    factor = 1

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        return self.channels, resolution, resolution

    def moments(self, images: Tensor) -> Tensor:
        return torch.cat([images, torch.zeros_like(images)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        return latents.float()


Codec: TypeAlias = LatentCodec | PixelCodec


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """Latents (B, C, h, w) from cached moments (B, 2 C, h, w) and unit noise (B, C, h, w)."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * noise
