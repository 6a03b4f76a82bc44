"""Finite losses and gradients: computation in float32 under any autocast, and normalisation of vectors of length zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def in_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`loss` with half-precision tensors cast to float32, and with autocast off, which would cast matrix products back.

    float64 tensors stay float64.
    """

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            wide = {name: _widened(value) for name, value in kwargs.items()}
            return cast(Callable[..., Tensor], loss)(*map(_widened, args), **wide)

    return computed


def unit(x: Tensor, dim: int) -> Tensor:
    """`x` normalised to length 1 along `dim`; vectors of length 0 stay 0, with gradient 0."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length > 0, length, torch.inf)


def check_shapes(student: Tensor, teacher: Tensor, name: str = "student") -> None:
    """Raise ValueError where the shapes differ: broadcasting (B,) against (B, 1) would silently compare every pair."""
    if student.shape != teacher.shape:
        raise ValueError(f"{name} {tuple(student.shape)}: expects the shape it is compared with, {tuple(teacher.shape)}")


def check_batch(batch: Tensor, min_samples: int, loss_name: str) -> None:
    """Raise ValueError where a batch has fewer than `min_samples` samples."""
    if len(batch) < min_samples:
        raise ValueError(f"batch of {len(batch)}: {loss_name} expects at least {min_samples} samples")


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
