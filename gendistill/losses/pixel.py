"""Distances between two batches of pictures, or of any tensors of one shape, as means over the batch.

All are 0 at equality. Gradients flow to both arguments: detach the target where it is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, unit


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, a scalar; in [0, 2] for pictures in [-1, 1].

    Isola et al. 2017 (pix2pix) weigh it 100 beside an adversarial loss of weight 1.
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


def multi_scale(
    prediction: Tensor, target: Tensor, levels: int = 3, distance: Callable[[Tensor, Tensor], Tensor] = l1
) -> Tensor:
    """`distance` of pictures (B, C, H, W), averaged over a pyramid: as they are, and each level at half the edges of the last.

    Coarse levels see where colours are, and forgive small shifts. The range is that of `distance`: the mean over levels, not
    the sum. An odd edge loses its last row.

    Raises:
        ValueError: the shapes differ, or the pictures cannot be halved as often as asked.
    """
    check_shapes(prediction, target, "prediction")
    most = min(prediction.shape[2:]).bit_length()  # as many times as the shorter edge can be halved, and the picture itself
    if not 1 <= levels <= most:
        size = f"{prediction.shape[3]}x{prediction.shape[2]}"
        raise ValueError(f"levels {levels}: takes from 1 to {most} for pictures of {size}")
    prediction, target = prediction.float(), target.float()
    total = distance(prediction, target)
    for _ in range(levels - 1):
        prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        total = total + distance(prediction, target)
    return total / levels


def perceptual(
    prediction: Tensor,
    target: Tensor,
    features: Callable[[Tensor], Sequence[Tensor]],
    normalise: bool = True,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """Distance of two batches of pictures in the layers of a feature network, summed over layers.

    Args:
        prediction, target: what `features` takes, in the range that it takes.
        features: gives a layer's features (B, C, ...) each; its parameters should not require gradients.
        normalise: LPIPS (Zhang et al. 2018, eq. 1): features of length 1 at every place, squared differences summed over
            channels and averaged over places; in [0, 4] a layer without weights, [0, 2] for features of no negative values.
            Otherwise the mean squared difference of the features as they are (Johnson et al. 2016, eq. 2), in their own scale.
        weights: of channels, (C,) a layer; None is 1 for all. LPIPS's are learned: the squares of eq. 1's w.

    Raises:
        ValueError: the numbers of layers and of weights differ, or the shapes of pictures.
    """
    check_shapes(prediction, target, "prediction")
    return perceptual_distance(features(prediction), features(target), normalise, weights)


def perceptual_distance(
    prediction: Sequence[Tensor],
    target: Sequence[Tensor],
    normalise: bool = True,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """`perceptual` of features (B, C, ...) that were computed already, a layer each."""
    if weights is not None and len(weights) != len(prediction):
        raise ValueError(f"weights {len(weights)}: takes one a layer, {len(prediction)}")
    total = prediction[0].new_zeros((), dtype=prediction[0].float().dtype)
    for k, (p, t) in enumerate(zip(prediction, target, strict=True)):
        p, t = p.float(), t.float()
        if normalise:
            p, t = unit(p, 1), unit(t, 1)
        squared = (p - t).square().movedim(1, -1)
        if weights is not None:
            squared = squared * weights[k].to(squared)
        total = total + (squared.sum(-1).mean() if normalise else squared.mean())
    return total
