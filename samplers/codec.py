"""Between images and the space that diffusion happens in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


class LatentCodec:
    """An `AutoencoderKL` with its scaling: images in [-1, 1] to latents of about unit variance and back.

    A VAE in float16 works in float32 where its config says that it overflows otherwise, as that of SDXL does.
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
        """Images (B, 3, H, W) in [-1, 1] to mean and standard deviation of their latents: (B, 2 C, h, w).

        What is cached: a latent is sampled from it anew each time the image is seen, at no cost.
        """
        with self._without_overflow():
            posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        mean = (posterior.mean.float() - self.shift_factor) * self.scaling_factor
        return torch.cat([mean, posterior.std.float() * self.scaling_factor], dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) float in [-1, 1]."""
        with self._without_overflow():
            return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """The same where gradients pass: images that may leave [-1, 1] a little. A VAE in float16 may overflow here."""
        unscaled = latents / self.scaling_factor + self.shift_factor
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
    """The identity, for models that diffuse pixels: a 'moment' has standard deviation zero."""

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
    """A latent (B, C, h, w) from cached moments (B, 2 C, h, w) and unit noise (B, C, h, w)."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * noise
