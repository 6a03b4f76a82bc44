"""Distances between two batches of images, or of any tensors of equal shape, as means over the batch.

All losses are 0 where the batches are equal. Gradients flow to both arguments: detach the target where it is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, unit


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, a scalar; in [0, 2] for images in [-1, 1].

    Isola et al. 2017 (pix2pix) use the weight 100, with an adversarial loss of weight 1.
    """
    return (prediction.float() - target.float()).abs().mean()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return (prediction.float() - target.float()).square().mean()


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.001) -> Tensor:
    """mean(sqrt((p - t)^2 + c^2) - c), a scalar: quadratic below c, linear above (element-wise, as in LCM's training).

    Song & Dhariwal 2023, section 3.3, take the norm of the whole sample instead.
    """
    return ((prediction.float() - target.float()).square() + c**2).sqrt().sub(c).mean()


def multi_scale(prediction: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """`l1` of images (B, C, H, W), averaged over the levels of a pyramid: full resolution, half, a quarter, ...

    Coarse levels compare the layout of colours, and tolerate small shifts. The range is that of `l1`: the mean over levels, not
    the sum. Pooling drops the last row of an odd edge.

    Raises:
        ValueError: the shapes differ, or the images cannot be halved `levels - 1` times.
    """
    check_shapes(prediction, target, "prediction")
    max_levels = min(prediction.shape[2:]).bit_length()  # the image itself, and each halving of the shorter edge
    if not 1 <= levels <= max_levels:
        size = f"{prediction.shape[3]}x{prediction.shape[2]}"
        raise ValueError(f"levels {levels}: expects from 1 to {max_levels} for images of {size}")
    prediction, target = prediction.float(), target.float()
    total = l1(prediction, target)
    for _ in range(levels - 1):
        prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        total = total + l1(prediction, target)
    return total / levels


def perceptual_distance(prediction: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Distance between the feature maps of two batches of images, summed over layers: LPIPS without learned weights.

    Zhang et al. 2018, eq. 1: features normalised to length 1 at every position, squared differences summed over channels and
    averaged over positions; in [0, 4] per layer, in [0, 2] for non-negative features.

    Args:
        prediction, target: feature maps (B, C, ...), one per layer; the parameters of the feature network should not require
            gradients.
    """
    total = prediction[0].new_zeros((), dtype=prediction[0].float().dtype)
    for p, t in zip(prediction, target, strict=True):
        total = total + (unit(p.float(), 1) - unit(t.float(), 1)).square().movedim(1, -1).sum(-1).mean()
    return total
