"""The exact map from input channels to output channels of an operation, from its autograd node."""

from __future__ import annotations

import math
from typing import Any

import torch

Table = list[list[int]]  # for each channel of one tensor, the corresponding channels of another
MOVES = (
    *("Cat", "Slice", "Flip", "PixelShuffle", "PixelUnshuffle", "Permute", "Transpose", "Swap", "TBackward"),
    *("Unsqueeze", "Stack", "View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze"),
)
PRODUCTS = {"Bmm": (0, 1), "Mm": (0, 0), "Addmm": (1, 0), "Baddbmm": (1, 1)}  # position of the first factor, batch dimensions
NORMS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm")
SUMMED = -1  # in place of a dimension: channels that the operation sums over, those of both factors are coupled
REDUCTIONS = ("Mean", "Sum", "Amax", "Amin", "Max", "Min", "LinalgVectorNorm", "Norm", "Prod", "Logsumexp", "Std", "Var")


def name_of(function: Any) -> str:
    """The name of an autograd node: "AddBackward0"."""
    return function.name() if hasattr(function, "name") else ""


def shape_of(function: Any, index: int = 0) -> tuple[int, ...] | None:
    """The shape of output number `index` of an operation; None where autograd did not record it."""
    metadata = getattr(function, "_input_metadata", None)
    return tuple(metadata[index].shape) if metadata and index < len(metadata) else None


def compose(first: Table, then: Table | None) -> Table:
    """The composition of two tables; None is the identity."""
    return first if then is None else [[c for b in row if b < len(then) for c in then[b]] for row in first]


def split_table(function: Any, index: int, dim: int) -> Table | None:
    """The table from the channels of a split tensor to those of part `index`; None unless this is a split along `dim`."""
    name = name_of(function)
    if not name.startswith("Split") or _dim(function._saved_dim, len(function._saved_self_sym_sizes)) != dim:
        return None
    size = int(function._saved_self_sym_sizes[dim])
    sizes = getattr(function, "_saved_split_sizes", None) or [function._saved_split_size] * math.ceil(
        size / function._saved_split_size
    )
    start = sum(sizes[:index])
    return [[c - start] if start <= c < start + sizes[index] else [] for c in range(size)]


def _dim(dim: int, ndim: int) -> int:
    dim = int(dim)
    dim = dim - 2**64 if dim >= 2**63 else dim
    return dim % ndim if ndim else 0


def channel_map(
    name: str, function: Any, position: int, source: tuple[int, ...], dim: int, target: tuple[int, ...]
) -> tuple[int, Table | None] | None:
    """The output dimension (or `SUMMED`) and the table for the channels in dimension `dim` of an input; None where no output
    dimension corresponds to them.

    Args:
        name: of the autograd node `function`.
        position: of the input among the operation's inputs.
        source, target: shapes of the input and of the output.
    """
    ndim, size = len(source), source[dim]
    if name.startswith("Split"):
        return dim, None  # the table differs by part: see `split_table`
    if name.startswith(MOVES):
        return _moved(function, position, dim, source, target)
    if name.startswith("Convolution"):  # with a bare weight
        at = _convolved(function, position, source, dim, target)
        return None if at is None else (at, None)
    if product := next((factors for kind, factors in PRODUCTS.items() if name.startswith(kind)), None):
        at = _multiplied(*product, position, dim)
        return (dim + len(target) - ndim if at is None else at), None
    if name.startswith(NORMS) and position > 0:  # scale and shift
        return 1, None
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


def _convolved(function: Any, position: int, source: tuple[int, ...], dim: int, target: tuple[int, ...]) -> int | None:
    """Of a convolution: the dimension that the input (position 0), the weight (1) or the bias (2) determines."""
    if position == 0 and dim == 0:  # channels in the place of samples, as where one kernel blurs each of them
        return 0
    groups, inputs = function._saved_groups, int(not function._saved_transposed)  # the dimension of the weight with its inputs
    if position == 2 or (groups == target[1] > 1 and dim == int(position == 0)):  # depthwise
        return 1 if position == 2 or position == 1 or source[1] == groups else None
    if groups > 1 or dim > 1:
        return None
    return SUMMED if dim == (1 if position == 0 else inputs) else 1


def _multiplied(first: int, batch: int, position: int, dim: int) -> int | None:
    """Of a matrix product (*batch, N, K) x (*batch, K, M): rows and columns stay, K is summed; None for an added bias."""
    if position < first:
        return None
    return SUMMED if dim == batch + (1 if position == first else 0) else dim


def _moved(
    function: Any, position: int, dim: int, source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, Table | None] | None:
    """The channel map of an operation that only rearranges values: its gradient carries output indices back to the input.

    The channels map to the largest dimension of the target that determines them or is determined by them: (C * 16,) to
    (C, 4, 4), (C, 4, 4) to (C * 16,), (C,) to (heads, C / heads). Between equal sizes, the first dimension where the source
    is a vector per sample (it becomes an image), otherwise the last.
    """
    large = [k for k in range(len(target)) if target[k] > 1 and source[dim] > 1]
    for k in sorted(large, key=lambda k: (-target[k], -k if len(source) > 2 else k)):
        numbers = torch.arange(1.0, target[k] + 1).reshape(-1, *[1] * (len(target) - k - 1)).expand(target)
        back = function(numbers.to(function._input_metadata[0].device, function._input_metadata[0].dtype))
        back = back[position] if isinstance(back, tuple) else back
        maps_to = torch.zeros(source[dim], target[k] + 1, dtype=torch.bool)  # column 0: values that the operation drops
        maps_to[torch.arange(source[dim])[:, None], back.movedim(dim, 0).reshape(source[dim], -1).cpu().long()] = True
        maps_to = maps_to[:, 1:]
        if not ((maps_to.sum(1) <= 1).all() or (maps_to.sum(0) <= 1).all()):
            continue  # neither dimension determines the other
        same = source[dim] == target[k] and bool(maps_to.diagonal().all())
        return k, None if same else [row.nonzero().flatten().tolist() for row in maps_to]
    return None
