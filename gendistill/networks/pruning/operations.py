"""Where the channels of an operation's input are in its output, exactly, from what autograd recorded of it."""

from __future__ import annotations

import math
from typing import Any

import torch

Table = list[list[int]]  # for each channel of one side, the channels of the other
MOVES = (
    *("Cat", "Slice", "Flip", "PixelShuffle", "PixelUnshuffle", "Permute", "Transpose", "Swap", "TBackward"),
    *("Unsqueeze", "Stack", "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze"),
)
REDUCTIONS = ("Mean", "Sum", "Amax", "Amin", "Max", "Min", "LinalgVectorNorm", "Norm", "Prod", "Logsumexp", "Std", "Var")


def name_of(function: Any) -> str:
    """What autograd calls an operation: "AddBackward0"."""
    return function.name() if hasattr(function, "name") else ""


def shape_of(function: Any, which: int = 0) -> tuple[int, ...] | None:
    """The shape of an operation's output number `which`; None where autograd did not record it."""
    metadata = getattr(function, "_input_metadata", None)
    return tuple(metadata[which].shape) if metadata and which < len(metadata) else None


def chain(first: Table, then: Table | None) -> Table:
    """One table after the other; None keeps the numbers."""
    return first if then is None else [[c for b in row if b < len(then) for c in then[b]] for row in first]


def split_table(function: Any, which: int, dim: int) -> Table | None:
    """From the channels of what was split to those of its part `which`; None where it is no split along channels."""
    name = name_of(function)
    if not name.startswith("Split") or _dim(function._saved_dim, len(function._saved_self_sym_sizes)) != dim:
        return None
    size = int(function._saved_self_sym_sizes[dim])
    sizes = getattr(function, "_saved_split_sizes", None) or [function._saved_split_size] * math.ceil(
        size / function._saved_split_size
    )
    start = sum(sizes[:which])
    return [[c - start] if start <= c < start + sizes[which] else [] for c in range(size)]


def _dim(dim: int, ndim: int) -> int:
    dim = int(dim)
    dim = dim - 2**64 if dim >= 2**63 else dim
    return dim % ndim if ndim else 0


def through(
    name: str, function: Any, position: int, source: tuple[int, ...], dim: int, target: tuple[int, ...]
) -> tuple[int, Table | None] | None:
    """Where the channels in dimension `dim` of an input go: the dimension of the output and the table, or None if they end."""
    ndim, size = len(source), source[dim]
    if name.startswith("Split"):
        return dim, None  # the table stands at what reads a part, for each has its own
    if name.startswith(MOVES):
        return _moved(function, position, dim, source, target)
    if name.startswith("Convolution"):  # of a weight of no layer: only a filter of each channel lets them through
        return (1, None) if position == 0 and dim == 1 and function._saved_groups == size == target[1] else None
    if name.startswith("Glu"):
        return dim, [[c % target[dim]] for c in range(size)] if target[dim] != size else None
    if name.startswith("Repeat"):
        dim = dim + len(target) - ndim
        return dim, [[c + k for k in range(0, target[dim], size)] for c in range(size)]
    if name.startswith(("Select", "Index", "Unbind")):
        at = _dim(getattr(function, "_saved_dim", 0), ndim)
        return None if at == dim else (dim - (at < dim), None)
    if name.startswith(REDUCTIONS) and len(target) <= ndim:
        saved = getattr(function, "_saved_dim", None)
        dims = [] if saved is None else [_dim(d, ndim) for d in (saved if isinstance(saved, (tuple, list)) else [saved])]
        if (saved is None and len(target) < ndim) or dim in dims:
            return None
        return (dim if len(target) == ndim else dim - sum(d < dim for d in dims)), None
    aligned = dim + len(target) - ndim
    return (aligned, None) if 0 <= aligned < len(target) and target[aligned] == size and size > 1 else None


def _moved(
    function: Any, position: int, dim: int, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, Table | None] | None:
    """Channels through an operation that only moves numbers, exactly: its own gradient moves the output's back to the input.

    They go to the largest dimension of the target that follows from them or that they follow from: (C * 16,) to (C, 4, 4),
    (C, 4, 4) to (C * 16,), (C,) to (heads, C / heads). Of two as large, the first of a tensor of numbers alone (an image
    follows), else the last.
    """
    large = [k for k in range(len(target)) if target[k] > 1 and source[dim] > 1]
    for k in sorted(large, key=lambda k: (-target[k], -k if len(source) > 2 else k)):
        numbers = torch.arange(1.0, target[k] + 1).reshape(-1, *[1] * (len(target) - k - 1)).expand(target)
        back = function(numbers.to(function._input_metadata[0].device, function._input_metadata[0].dtype))
        back = back[position] if isinstance(back, tuple) else back
        goes = torch.zeros(source[dim], target[k] + 1, dtype=torch.bool)  # 0: numbers that the operation leaves out
        goes[torch.arange(source[dim])[:, None], back.movedim(dim, 0).reshape(source[dim], -1).cpu().long()] = True
        goes = goes[:, 1:]
        if not ((goes.sum(1) <= 1).all() or (goes.sum(0) <= 1).all()):
            continue  # neither side follows from the other
        same = source[dim] == target[k] and bool(goes.diagonal().all())
        return k, None if same else [row.nonzero().flatten().tolist() for row in goes]
    return None
