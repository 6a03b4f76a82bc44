"""The blocks of a U-Net: their names, their feature maps during a forward pass, and the pairs of blocks of two U-Nets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Sizes = Mapping[str, tuple[int, int]]


def blocks_of(network: Any) -> dict[str, nn.Module]:
    """Down, middle and up blocks by name (`down_blocks.0`, `mid_block`), in the order of the forward pass.

    The network may be wrapped for distributed training, or be an adapter on a shared base (`AdapterView`).
    """
    unet = getattr(network, "module", network)
    unet = getattr(unet, "base", unet)
    blocks = {f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)}
    if getattr(unet, "mid_block", None) is not None:
        blocks["mid_block"] = unet.mid_block
    return blocks | {f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)}


@contextmanager
def recorded_maps(network: Any, names: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Feature maps (B, C, h, w) of blocks in the last forward pass within the context, by block name, with gradients.

    Args:
        names: names of the blocks; None for all blocks.
    """
    blocks, maps = blocks_of(network), dict[str, Tensor]()
    handles = []
    for name in blocks if names is None else names:

        def record(_module: nn.Module, _inputs: object, output: Any, name: str = name) -> None:
            maps[name] = output if isinstance(output, Tensor) else output[0]  # down blocks also return skip connections

        handles.append(blocks[name].register_forward_hook(record))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def sizes_of(maps: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Height and width of each map (B, C, h, w)."""
    return {name: (block_map.shape[-2], block_map.shape[-1]) for name, block_map in maps.items()}


def paired_blocks(teacher: Sizes, student: Sizes) -> list[tuple[str, str]]:
    """Corresponding blocks (teacher, student) of two networks by path, size of the maps and depth, in the teacher's order.

    Within a path (down, middle, up) and a size, blocks are paired from the last backwards: the last output of a path at a size
    is comparable regardless of the number of blocks before it.
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
        for teacher_block, student_block in zip(reversed(names), reversed(student_groups.get(key, [])), strict=False)
    }
    return [(name, student_of[name]) for name in teacher if name in student_of]
