"""Where the channels of an operation's input are in its output, exactly, from the shapes that autograd recorded."""

from __future__ import annotations

import math
from typing import Any

import torch

Table = list[list[int]]  # for each channel of one side, the channels of the other
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
    if name.startswith("Cat"):
        along = _dim(function._saved_dim, len(target))
        if along != dim:
            return dim, None
        sizes = [shape[along] if (shape := shape_of(fn, part)) else None for fn, part in function.next_functions]
        if sizes.count(None) == 1:  # a tensor without gradient: its share is what the others leave
            sizes[sizes.index(None)] = target[along] - sum(n or 0 for n in sizes)
        start = sum(n or 0 for n in sizes[:position])
        return dim, [[start + c] for c in range(size)]
    if name.startswith("Slice") and _dim(function._saved_dim, ndim) == dim:
        start, step = int(function._saved_start), int(function._saved_step)
        return dim, [
            [(c - start) // step] if c >= start and (c - start) % step == 0 and (c - start) // step < target[dim] else []
            for c in range(size)
        ]
    if name.startswith("Flip") and dim in [_dim(d, ndim) for d in function._saved_dims]:
        return dim, [[size - 1 - c] for c in range(size)]
    if name.startswith("PixelShuffle"):
        square = function._saved_upscale_factor**2
        return dim, [[c // square] for c in range(size)]
    if name.startswith("PixelUnshuffle"):
        square = function._saved_downscale_factor**2
        return dim, [list(range(c * square, (c + 1) * square)) for c in range(size)]
    if name.startswith("Convolution"):  # of a weight of no layer: only a filter of each channel lets them through
        return (1, None) if position == 0 and dim == 1 and function._saved_groups == size == target[1] else None
    if name.startswith("Glu"):
        return dim, [[c % target[dim]] for c in range(size)] if target[dim] != size else None
    if name.startswith("Repeat"):
        dim = dim + len(target) - ndim
        return dim, [[c + k for k in range(0, target[dim], size)] for c in range(size)]
    if name.startswith("Permute"):
        return [_dim(d, ndim) for d in function._saved_dims].index(dim), None
    if name.startswith(("Transpose", "Swap")):
        one, two = _dim(function._saved_dim0, ndim), _dim(function._saved_dim1, ndim)
        return {one: two, two: one}.get(dim, dim), None
    if name.startswith("TBackward"):
        return 1 - dim, None
    if name.startswith(("Unsqueeze", "Stack")):
        at = _dim(function._saved_dim, len(target))
        return dim + (at <= dim), None
    if name.startswith(("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze")):
        return _view(source, dim, target)
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


def _view(source: tuple[int, ...], dim: int, target: tuple[int, ...]) -> tuple[int, Table | None] | None:
    """Channels through a reshape, exactly: which channel of the target each number of the source becomes.

    Dimensions of both shapes are matched in runs of equal product. In the run of the channels, they go to the largest
    dimension of the target that follows from them or that they follow from: (C * 16,) to (C, 4, 4), (C, 4, 4) to (C * 16,),
    (C,) to (heads, C / heads). Of two as large, the first of a tensor of numbers alone (a picture follows), else the last.
    """
    i = j = 0
    while i < len(source) and j < len(target):
        i_end, j_end, left, right = i + 1, j + 1, source[i], target[j]
        while left != right:
            if left < right:
                left *= source[i_end]
                i_end += 1
            else:
                right *= target[j_end]
                j_end += 1
        if i <= dim < i_end:
            return _view_run(source[i:i_end], dim - i, target[j:j_end], j, last=len(source) > 2)
        i, j = i_end, j_end
    return None


def _view_run(
    source: tuple[int, ...], dim: int, target: tuple[int, ...], offset: int, *, last: bool
) -> tuple[int, Table | None] | None:
    numbers = torch.arange(math.prod(source))
    mine = torch.unravel_index(numbers, source)[dim]
    order = sorted(range(len(target)), key=lambda k: (-target[k], -k if last else k))
    for k in (k for k in order if target[k] > 1 or source[dim] == 1):
        theirs = torch.unravel_index(numbers, target)[k]
        pairs = torch.unique(torch.stack([mine, theirs], 1), dim=0)
        if len(pairs) not in (source[dim], target[k]):
            continue  # neither side follows from the other
        if len(pairs) == source[dim] == target[k] and bool((pairs[:, 0] == pairs[:, 1]).all()):
            return offset + k, None
        table: Table = [[] for _ in range(source[dim])]
        for a, b in pairs.tolist():
            table[a].append(b)
        return offset + k, table
    return None
