"""Colours of images in OKLab, whose distances are those that people see (Ottosson 2020, bottosson.github.io/posts/oklab)."""

from __future__ import annotations

import torch
from torch import Tensor

TO_CONES = (  # from linear sRGB
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB = (  # from the cube root of the responses of the cones
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def oklab(images: Tensor) -> Tensor:
    """Lightness and the axes green to red and blue to yellow, (N, 3, H, W), of sRGB images (N, 3, H, W) in [0, 1]."""
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    cones = torch.einsum("dc,nchw->ndhw", linear.new_tensor(TO_CONES), linear)
    return torch.einsum("dc,nchw->ndhw", linear.new_tensor(TO_LAB), cones.clamp(min=0) ** (1 / 3))


def mean_colour(images: Tensor) -> Tensor:
    """The mean of all pixels in OKLab, (3,), of images uint8 (N, 3, H, W); grey images (N, 1, H, W) have no chroma."""
    return _lab(images).mean((0, 2, 3))


def mean_chroma(images: Tensor) -> float:
    """The mean chroma of all pixels, their distance from grey in OKLab: the saturation of images uint8 (N, 3, H, W)."""
    return _lab(images)[:, 1:].norm(dim=1).mean().item()


def _lab(images: Tensor) -> Tensor:
    channels = images.shape[1]
    return oklab((images[:, :1].expand(-1, 3, -1, -1) if channels < 3 else images[:, :3]).float() / 255)
