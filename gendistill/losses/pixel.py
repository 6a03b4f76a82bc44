"""Distances between two batches of tensors of one shape, as the mean over all elements."""

from __future__ import annotations

from torch import Tensor


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return (prediction.float() - target.float()).square().mean()


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.001) -> Tensor:
    """mean(sqrt((p - t)^2 + c^2) - c), a scalar: quadratic below c, linear above (element-wise, as in LCM's training).

    Song & Dhariwal 2023, section 3.3, take the norm of the whole sample instead.
    """
    return ((prediction.float() - target.float()).square() + c**2).sqrt().sub(c).mean()
