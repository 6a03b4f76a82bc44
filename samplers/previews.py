"""What latents look like, in no time: a linear map from a latent's channels to a colour, or a tiny decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LatentColours:
    """A colour for each latent: affine in its channels. Pictures are as small as latents.

    Attributes:
        weight: (C + 1, 3), the last row is the constant.
        error: root mean square of what it leaves of the pictures that it was fitted on, in [0, 1].
    """

    weight: Tensor
    error: float

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w), as a denoiser sees them, to pictures (B, 3, h, w) in [0, 1]."""
        weight = self.weight.to(latents.device, latents.dtype)
        colours = torch.einsum("bchw,cd->bdhw", latents, weight[:-1]) + weight[-1, :, None, None]
        return colours.clamp(0, 1).float()

    @staticmethod
    def fit(latents: Tensor, pictures: Tensor) -> LatentColours:
        """By least squares, from latents (B, C, h, w) and what a decoder makes of them, (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: fewer latents than the map has numbers.
        """
        small = F.interpolate(pictures.float(), latents.shape[2:], mode="area")
        inputs = latents.float().movedim(1, -1).flatten(0, 2)
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1, device=inputs.device)], 1)
        if len(inputs) < inputs.shape[1]:
            raise ValueError(f"latents: {len(inputs)} are too few to fit {inputs.shape[1]} numbers a colour")
        wanted = small.movedim(1, -1).flatten(0, 2)
        weight = torch.linalg.lstsq(inputs, wanted).solution
        return LatentColours(weight, float((inputs @ weight - wanted).square().mean().sqrt()))


def decoded_preview(vae: Any, latents: Tensor) -> Tensor:
    """By a decoder that is as tiny as an `AutoencoderTiny`: pictures (B, 3, H, W) in [0, 1]."""
    return (vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample.float() / 2 + 0.5).clamp(0, 1)
