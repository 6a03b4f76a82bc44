"""Differentiable augmentation (Zhao et al. 2020), which prevents the discriminator from overfitting small data sets.

Real and generated images are augmented by random, differentiable transformations before the discriminator. The random numbers
are arguments, so that the result does not depend on how batches are split.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_UNIFORM = 7  # uniform random numbers per image
POLICIES = ("color", "translation", "cutout")


def augment(x: Tensor, uniform: Tensor, policy: tuple[str, ...] = POLICIES) -> Tensor:
    """Augment images x (B, C, H, W) in [-1, 1], deterministically given uniform random numbers (B, 7) in [0, 1).

    - `color`: brightness plus [-0.5, 0.5), saturation times [0, 2) (no effect where C = 1), contrast times [0.5, 1.5).
    - `translation`: by up to an eighth of each edge, filled with zeros.
    - `cutout`: a rectangle of half of each edge, possibly partly outside the image, is set to zero.

    Positions do not depend on the precision of x.

    Raises:
        ValueError: an unknown policy.
    """
    if unknown := set(policy) - set(POLICIES):
        raise ValueError(f"augmentation {', '.join(sorted(unknown))} is not known; expects {', '.join(POLICIES)}")
    columns = uniform.unbind(1)
    if "color" in policy:
        x = _color(x, *(column.to(x.dtype) for column in columns[:3]))
    if "translation" in policy:
        x = _translation(x, *columns[3:5])
    return _cutout(x, *columns[5:7]) if "cutout" in policy else x


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    def per_image(value: Tensor) -> Tensor:
        return value[:, None, None, None]

    x = x + per_image(brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * per_image(saturation * 2) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * per_image(contrast + 0.5) + mean


def _translation(x: Tensor, down: Tensor, right: Tensor, *, ratio: float = 0.125) -> Tensor:
    """Shift by products with 0-1 selection matrices, whose gradients are cheaper than those of indexing."""
    selections = []
    for edge, uniform in zip(x.shape[2:], (down, right), strict=True):
        max_shift = int(edge * ratio + 0.5)
        shift = ((2 * max_shift + 1) * uniform).floor() - max_shift
        position = torch.arange(edge, device=x.device)
        selections.append((position == position[:, None] - shift[:, None, None]).to(x.dtype))  # (B, to, from)
    return selections[0][:, None] @ x @ selections[1][:, None].mT


def _cutout(x: Tensor, down: Tensor, right: Tensor, *, ratio: float = 0.5) -> Tensor:
    inside = []
    for edge, uniform in zip(x.shape[2:], (down, right), strict=True):
        size = int(edge * ratio + 0.5)
        centre = (uniform * (edge + 1 - size % 2)).floor()[:, None]
        position = torch.arange(edge, device=x.device)
        inside.append((position >= centre - size // 2) & (position < centre - size // 2 + size))
    kept = ~(inside[0][:, :, None] & inside[1][:, None, :])
    return x * kept[:, None].to(x.dtype)
