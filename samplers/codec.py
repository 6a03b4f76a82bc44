"""Encoding images into the space of the diffusion, and decoding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

LUMA = (0.299, 0.587, 0.114)  # of ITU-R 601
VAES = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC", "VQModel")


class LatentCodec:
    """A VAE with its scaling: images in [-1, 1] to latents of about unit variance and back.

    The latents are z = (encoded - mean) scaling_factor / std. Which of these a VAE's config sets for its pipeline is a property
    of the family, as in diffusers: Stable Diffusion's pipelines use the scaling factor alone, XL's also `latents_mean` and
    `latents_std`, and others `shift_factor` as the mean.

    A VAE in float16 is computed in float32 if its config has `force_upcast`, as SDXL's has.

    Args:
        vae: one of `VAES`; `AutoencoderTiny`, `AutoencoderDC` and `VQModel` encode without a variance.
        mean, std: one number, or one for each channel.
        patch: edge of the patches of the VAE's latents that are one latent of the diffusion, with patch^2 times the channels.
        sigma_data: standard deviation of the pipeline's latents, where its scheduler is one of EDM; they are divided by it.

    Raises:
        ValueError: the VAE is of another class.
    """

    def __init__(
        self,
        vae: Any,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        patch: int = 1,
        sigma_data: float = 1.0,
    ) -> None:
        if (kind := type(vae).__name__) not in VAES:
            raise ValueError(f"vae: a {kind} is not supported; expects one of {', '.join(VAES)}")
        self.vae = vae
        config = vae.config
        self.scaling_factor: float = config.get("scaling_factor", 1.0) / sigma_data
        self.mean, self.std, self.patch = mean, std, patch
        levels = config.get("block_out_channels") or config["encoder_block_out_channels"]
        self.factor: int = 2 ** (len(levels) - 1) * patch
        self.channels: int = config["latent_channels"] * patch**2

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """C, h, w of the latents of images of `size` (height, width)."""
        return self.channels, size[0] // self.factor, size[1] // self.factor

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Mean and standard deviation (B, 2 C, h, w) of the latents of images (B, 3, H, W) in [-1, 1].

        The cache holds these moments, so that a new latent is sampled from them in each epoch.
        """
        with self._without_overflow():
            encoded = self.vae.encode(images.to(self.vae.device, self.vae.dtype))
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
        else:  # the only field of the output, whose name depends on the autoencoder
            mean = encoded[0].float()
            std = torch.zeros_like(mean)
        mean, std = (pixel_unshuffle(part, self.patch) if self.patch > 1 else part for part in (mean, std))
        return torch.cat([self.scaled(mean), std * self.scaling_factor / _by_channel(self.std, std)], dim=1)

    def scaled(self, encoded: Tensor) -> Tensor:
        """Latents (B, C, h, w) of the VAE's, in patches."""
        return (encoded - _by_channel(self.mean, encoded)) * (self.scaling_factor / _by_channel(self.std, encoded))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), float in [-1, 1], of latents (B, C, h, w)."""
        with self._without_overflow():
            return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Images with gradients, which may lie slightly outside of [-1, 1]. A VAE in float16 may overflow here.

        The VAE computes in the dtype of its weights under any autocast.
        """
        unscaled = latents * _by_channel(self.std, latents) / self.scaling_factor + _by_channel(self.mean, latents)
        unscaled = pixel_shuffle(unscaled, self.patch) if self.patch > 1 else unscaled
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
    """The codec of pixel-space models, of grey (1 channel), RGB (3) or RGBA (4) images: moments have standard deviation zero.

    Images are RGB outside of the diffusion. Grey images are their luma, as Pillow's; RGBA images are encoded as opaque and
    decoded on white, as image files with transparency are read. Images are divided by `sigma_data` of EDM.

    Raises:
        ValueError: another number of channels.
    """

    factor = 1

    def __init__(self, channels: int = 3, sigma_data: float = 1.0) -> None:
        if channels not in (1, 3, 4):
            raise ValueError(f"images of {channels} channels are not supported; expects 1 (grey), 3 (RGB) or 4 (RGBA)")
        self.channels, self.sigma_data = channels, sigma_data

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return self.channels, *size

    def moments(self, images: Tensor) -> Tensor:
        if self.channels == 1:
            images = (images * torch.tensor(LUMA, device=images.device).view(-1, 1, 1)).sum(1, keepdim=True)
        elif self.channels == 4:
            images = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        return torch.cat([images / self.sigma_data, torch.zeros_like(images)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        images = latents.float() * self.sigma_data
        return images if self.channels == 3 else self.rgb(images / 2 + 0.5) * 2 - 1

    def rgb(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of images (B, C, H, W) in [0, 1]."""
        if self.channels == 4:
            colours, opacity = images[:, :3], images[:, 3:]
            return colours * opacity + 1 - opacity
        return images.expand(-1, 3, -1, -1)


def _by_channel(value: float | Sequence[float], like: Tensor) -> float | Tensor:
    """A number as it is, which needs no copy to a device; numbers by channel as (C, 1, 1)."""
    return value if isinstance(value, int | float) else torch.tensor(value, dtype=like.dtype, device=like.device).view(-1, 1, 1)


Codec: TypeAlias = LatentCodec | PixelCodec


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """Latents (B, C, h, w) from cached moments (B, 2 C, h, w) and unit noise (B, C, h, w)."""
    mean, std = moments.chunk(2, dim=1)
    return mean + std * noise
