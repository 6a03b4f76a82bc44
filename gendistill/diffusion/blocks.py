"""The blocks of a denoiser: their names, their feature maps during a forward pass, and the pairs of blocks of two networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.networks.counting import called
from gendistill.networks.pruning.transformer_pruning import stacks_of

Sizes = Mapping[str, tuple[int, int]]


def blocks_of(network: Any) -> dict[str, nn.Module]:
    """Down, middle and up blocks of a U-Net by name (`down_blocks.0`, `mid_block`), or the blocks of a transformer
    (`transformer_blocks.0`), in the order of the forward pass.

    The network may be wrapped for distributed training, or be an adapter on a shared base (`AdapterView`).
    """
    unet = getattr(network, "module", network)
    unet = getattr(unet, "base", unet)
    if stacks := stacks_of(unet):
        return {f"{stack}.{k}": block for stack in stacks for k, block in enumerate(getattr(unet, stack))}
    blocks = {f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)}
    if getattr(unet, "mid_block", None) is not None:
        blocks["mid_block"] = unet.mid_block
    return blocks | {f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)}


@contextmanager
def recorded_maps(network: Any, names: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Feature maps (B, C, h, w) of blocks in the last forward pass within the context, by block name, with gradients.

    The L tokens of a transformer are a map (B, C, L, 1); those of the prompt are no part of it where a block returns both.

    Args:
        names: names of the blocks; None for all blocks.
    """
    blocks, maps = blocks_of(network), dict[str, Tensor]()
    handles = []
    for name in blocks if names is None else names:

        def record(_module: nn.Module, _inputs: object, output: Any, name: str = name) -> None:
            if not isinstance(output, Tensor):  # down blocks also return skip connections, and joint blocks the prompt's tokens
                output = [value for value in output if isinstance(value, Tensor)][-1]
            maps[name] = output if output.ndim == 4 else output.transpose(1, 2).unsqueeze(-1)

        handles.append(blocks[name].register_forward_hook(record))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def shapes_of_blocks(network: Any, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """The shape (C, h, w) of each block's feature map of one sample, for a network and its arguments on the meta device."""
    with recorded_maps(network) as maps:
        called(network, inputs)
    return {name: (features.shape[1], features.shape[2], features.shape[3]) for name, features in maps.items()}


def sizes_of(maps: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Height and width of each map (B, C, h, w)."""
    return {name: (block_map.shape[-2], block_map.shape[-1]) for name, block_map in maps.items()}


def paired_blocks(teacher: Sizes, student: Sizes) -> list[tuple[str, str]]:
    """Corresponding blocks (teacher, student) of two networks by path, size of the maps and depth, in the teacher's order.

    Within a path (down, middle, up) and a size, blocks are paired evenly over the depth, the last ones with each other: the
    last output of a path at a size is comparable regardless of the number of blocks before it.
    """

    def grouped(sizes: Sizes) -> dict[tuple[str, tuple[int, int]], list[str]]:
        groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
        for name, size in sizes.items():
            groups.setdefault((name.split(".")[0], size), []).append(name)
        return groups

    student_groups = grouped(student)
    student_of = {
        teacher_block: student_block
        for key, names in grouped(teacher).items()
        for teacher_block, student_block in _evenly(names, student_groups.get(key, []))
    }
    return [(name, student_of[name]) for name in teacher if name in student_of]


def first_half(network: Any) -> list[str]:
    """Names of the blocks that encode x_t: the down blocks and the middle one, or the first half of a transformer's blocks."""
    names = list(blocks_of(network))
    up = [name for name in names if name.startswith("up_")]
    return names[: len(names) - len(up)] if up else names[: (len(names) + 1) // 2]


def _evenly(teacher: Sequence[str], student: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of as many blocks as the shorter list has, which end equal fractions of both lists."""
    count = min(len(teacher), len(student))
    for k in range(1, count + 1):
        yield teacher[k * len(teacher) // count - 1], student[k * len(student) // count - 1]
