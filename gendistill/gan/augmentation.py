"""Differentiable augmentation (Zhao et al. 2020): what lets a discriminator learn from few images without learning them.

The discriminator sees every image, real or made, through random changes that gradients pass through. All randomness comes
in as numbers, so that a run is the same however its batches are split.
"""

from __future__ import annotations

import torch
from torch import Tensor

REPEATED_SAMPLES = 7  # uniform numbers that an image's augmentation takes
POLICIES = ("color", "translation", "cutout")


def augment(x: Tensor, draws: Tensor, policy: tuple[str, ...] = POLICIES) -> Tensor:
    """Images x (B, C, H, W) in [-1, 1], changed by `samples` (B, 7) in [0, 1): the same samples make the same change.

    - `color`: brightness by [-0.5, 0.5), saturation by [0, 2) (nothing where C = 1), contrast by [0.5, 1.5).
    - `translation`: by up to an eighth of each edge, filled with zeros.
    - `cutout`: a rectangle of half of each edge, perhaps partly outside, is zero.

    A change is in the same place whatever the precision of x.

    Raises:
        ValueError: a policy that is none of these.
    """
    if unknown := set(policy) - set(POLICIES):
        raise ValueError(f"augmentation {', '.join(sorted(unknown))} is not known; expects {', '.join(POLICIES)}")
    columns = draws.unbind(1)
    if "color" in policy:
        x = _color(x, *(column.to(x.dtype) for column in columns[:3]))
    if "translation" in policy:
        x = _translation(x, *columns[3:5])
    return _cutout(x, *columns[5:7]) if "cutout" in policy else x


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    def each(of: Tensor) -> Tensor:
        return of[:, None, None, None]

    x = x + each(brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * each(saturation * 2) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * each(contrast + 0.5) + mean


def _translation(x: Tensor, down: Tensor, right: Tensor, *, ratio: float = 0.125) -> Tensor:
    """Rows and columns are chosen by matrices of ones and zeros: gradients through a product cost less than through indices."""
    chosen = []
    for edge, generate in zip(x.shape[2:], (down, right), strict=True):
        most = int(edge * ratio + 0.5)
        shift = ((2 * most + 1) * generate).floor() - most
        place = torch.arange(edge, device=x.device)
        chosen.append((place == place[:, None] - shift[:, None, None]).to(x.dtype))  # (B, to, from)
    return chosen[0][:, None] @ x @ chosen[1][:, None].mT


def _cutout(x: Tensor, down: Tensor, right: Tensor, *, ratio: float = 0.5) -> Tensor:
    inside = []
    for edge, generate in zip(x.shape[2:], (down, right), strict=True):
        size = int(edge * ratio + 0.5)
        centre = (generate * (edge + 1 - size % 2)).floor()[:, None]
        place = torch.arange(edge, device=x.device)
        inside.append((place >= centre - size // 2) & (place < centre - size // 2 + size))
    kept = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return x * kept[:, None].to(x.dtype)
