"""Removal of whole residual blocks: those whose absence changes the network's output least (Veit et al. 2016, section 4).

A block is residual where it multiplies its input by a number when all its weights are zero: x + f(x), and 1.2 x + f(x) in
ESRGAN. A removed block is replaced by its input, times the number that is nearest to the block's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gendistill.networks import counting
from gendistill.networks.pruning.pruned_architecture import duplicate, fold, remove_blocks

DEEP = 12  # `auto` reduces the depth of networks with at least this number of blocks
DEPTH_EXPONENT = 0.9  # `auto`: compressed by F, a network keeps F^-0.9 of its blocks, and their widths give the rest
MIN_BLOCKS = 4  # fewer blocks than this are opened: their inner blocks are removed, if they have any
MIN_COST = 0.001  # fraction of the network's multiply-accumulates that a block has at least, unlike a conditional norm
REMOVED_AT_ONCE = 4  # a round of measurements removes this fraction of the blocks, 1/4, at most
TOLERANCE = 1e-3
Inputs = Sequence[Sequence[Tensor]]  # arguments of a network, by batch


class Call(NamedTuple):
    """The arguments and the output of a call of a module."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


def residual_blocks(network: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """The paths of a network's residual blocks in order of execution: the outermost ones, if there are at least `MIN_BLOCKS`.

    A block runs once per forward pass, is no list of other blocks, and has at least `MIN_COST` of the multiply-accumulates.
    A few blocks that contain further ones (the groups of a network of groups) are replaced by these.
    """
    network = duplicate(network)
    fold(network)
    costs = counting.macs_by_module(network, inputs)
    calls: dict[str, list[Call]] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            calls.setdefault(path, []).append(Call(arguments, keywords, output))

        return hook

    modules = {
        path: module
        for path, module in network.named_modules()
        if path
        and type(module) is not nn.Sequential
        and any(True for _ in module.children())
        and sum(costs.get(inner, 0) for inner in _within(list(costs), path)) > MIN_COST * sum(costs.values())
    }
    handles = [module.register_forward_hook(record(path), with_kwargs=True) for path, module in modules.items()]
    with counting.evaluating(network):
        network(*inputs)
        for handle in handles:
            handle.remove()
        for weight in network.parameters():
            weight.zero_()
        found = [path for path, of_path in calls.items() if len(of_path) == 1 and _is_residual(modules[path], of_path[0])]
    level = _outermost(found)
    while len(level) < MIN_BLOCKS:
        opened = [inner or [path] for path in level for inner in [_outermost(_within(found, path))]]
        if len(flat := [path for inner in opened for path in inner]) <= len(level):
            break
        level = flat
    return level


def _is_residual(block: nn.Module, call: Call) -> bool:
    """Whether a block with weights of zero multiplies its first argument by a number."""
    x = call.arguments[0] if call.arguments else None
    if not (isinstance(x, Tensor) and isinstance(call.output, Tensor) and x.shape == call.output.shape):
        return False
    if not x.is_floating_point():
        return False
    y = block(*call.arguments, **call.keywords)
    scale = float((x.double() * y.double()).sum() / x.double().square().sum().clamp_min(1e-30))
    return abs(scale) > TOLERANCE and bool((y - scale * x).norm() <= TOLERANCE * y.norm())


def _within(paths: Sequence[str], path: str) -> list[str]:
    return [inner for inner in paths if inner.startswith(path + ".")]


def _outermost(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not any(path in _within(paths, outer) for outer in paths)]


def blocks_to_keep(count: int, depth: float | str, factor: float) -> int:
    """The number of blocks that stay of `count`.

    Args:
        depth: the fraction of the blocks to remove; or `auto`.
        factor: of the compression.
    """
    if depth == "auto":
        return math.ceil(count * factor**-DEPTH_EXPONENT) if count >= DEEP else count
    return max(1, round(count * (1 - float(depth))))


@torch.no_grad()
def blocks_to_remove(
    network: nn.Module,
    blocks: Sequence[str],
    keep: int,
    batches: Inputs,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The blocks to remove so that `keep` are left, each with the number that replaces it, see `RemovedBlock`.

    In rounds, every block is replaced alone, and the blocks whose absence changes the output of the network least (mean
    squared error to the whole network) are removed together, a quarter of the blocks that are left at most.

    Args:
        batches: real inputs.
        progress: called with the number of measured blocks.
    """
    network = duplicate(network)
    removed: dict[str, float] = {}
    with counting.evaluating(network):
        expected = [network(*batch) for batch in batches]
        while (left := len(blocks) - len(removed)) > keep:
            errors: dict[str, tuple[float, float]] = {}
            for path, scale in _scales(network, [path for path in blocks if path not in removed], batches).items():
                with _without(network, path, scale):
                    errors[path] = _error(network, batches, expected), scale
                if progress:
                    progress(1)
            ranked = sorted(errors, key=lambda path: errors[path][0])[: min(left - keep, max(1, left // REMOVED_AT_ONCE))]
            removed |= (chosen := {path: errors[path][1] for path in ranked})
            remove_blocks(network, chosen)
    return {path: removed[path] for path in blocks if path in removed}


def measurements(count: int, keep: int) -> int:
    """The number of blocks that `blocks_to_remove` measures."""
    total, left = 0, count
    while left > keep:
        total, left = total + left, left - min(left - keep, max(1, left // REMOVED_AT_ONCE))
    return total


def _scales(network: nn.Module, paths: Sequence[str], batches: Inputs) -> dict[str, float]:
    """For each block the number c with the least squared error of c x and its output."""
    sums: dict[str, list[float]] = {path: [0.0, 0.0] for path in paths}

    def record(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            sums[path][0] += float((arguments[0].double() * output.double()).sum())
            sums[path][1] += float(arguments[0].double().square().sum())

        return hook

    handles = [network.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    for batch in batches:
        network(*batch)
    for handle in handles:
        handle.remove()
    return {path: product / max(square, 1e-30) for path, (product, square) in sums.items()}


@contextmanager
def _without(network: nn.Module, path: str, scale: float) -> Iterator[None]:
    """The network without a block while the context is open."""
    block = network.get_submodule(path)
    remove_blocks(network, {path: scale})
    try:
        yield
    finally:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, block)


def _error(network: nn.Module, batches: Inputs, expected: Sequence[Any]) -> float:
    """The mean squared error of the network's outputs, summed over batches and output tensors."""
    pairs = [
        pair
        for batch, output in zip(batches, expected, strict=True)
        for pair in zip(_tensors(network(*batch)), _tensors(output), strict=True)
    ]
    return sum(float((a - b).double().square().mean()) for a, b in pairs)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in an output: a tensor, several, or diffusers' `.sample`."""
    return [leaf for leaf in tree_leaves(getattr(output, "sample", output)) if isinstance(leaf, Tensor)]
