"""What keeps losses and their gradients finite: float32 whatever the surroundings compute in, and lengths that may be zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def in_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`loss` with half-precision tensors widened to float32 and autocast off, which would narrow every matrix product again.

    Tensors of float64 stay so.
    """

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            wide = {name: _widened(value) for name, value in kwargs.items()}
            return cast(Callable[..., Tensor], loss)(*map(_widened, args), **wide)

    return computed


def unit(x: Tensor, dim: int) -> Tensor:
    """`x` scaled to length 1 along `dim`; where its length is 0 it stays 0, with gradient 0."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(length > 0, length, torch.inf)


def check_shapes(student: Tensor, teacher: Tensor, what: str = "student") -> None:
    """Raises ValueError where the shapes differ: broadcasting (B,) against (B, 1) compares every pair, without a word."""
    if student.shape != teacher.shape:
        raise ValueError(f"{what} {tuple(student.shape)}: expects the shape it is compared with, {tuple(teacher.shape)}")


def check_batch(batch: Tensor, least: int, what: str) -> None:
    """Raises ValueError where a batch has fewer than `least` samples."""
    if len(batch) < least:
        raise ValueError(f"batch of {len(batch)}: {what} expects at least {least} samples")


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
