"""The blocks of a U-Net: what they are called, what they say while it runs, and which of a smaller one answers which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Sizes = Mapping[str, tuple[int, int]]


def blocks_of(network: Any) -> dict[str, nn.Module]:
    """Down, middle and up blocks in the order in which they run, by their names: `down_blocks.0`, `mid_block`.

    A network may be wrapped for several processes, or one of those that share a base (`AdapterView`).
    """
    unet = getattr(network, "module", network)
    unet = getattr(unet, "base", unet)
    blocks = {f"down_blocks.{k}": block for k, block in enumerate(unet.down_blocks)}
    if getattr(unet, "mid_block", None) is not None:
        blocks["mid_block"] = unet.mid_block
    return blocks | {f"up_blocks.{k}": block for k, block in enumerate(unet.up_blocks)}


@contextmanager
def reading(network: Any, names: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """What blocks say while the context is open: maps (B, C, h, w) of the last call by the blocks' names, with gradients.

    Args:
        names: of the blocks; all of them where None.
    """
    blocks, found = blocks_of(network), dict[str, Tensor]()
    handles = []
    for name in blocks if names is None else names:

        def note(_module: nn.Module, _inputs: object, output: Any, name: str = name) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]  # down blocks also give what they hand across

        handles.append(blocks[name].register_forward_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def sizes_of(maps: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Height and width of each map (B, C, h, w)."""
    return {name: (of.shape[-2], of.shape[-1]) for name, of in maps.items()}


def paired_blocks(teacher: Sizes, student: Sizes) -> list[tuple[str, str]]:
    """Blocks of two networks that answer each other, by the sizes of their maps and their depth, in the teacher's order.

    Blocks of one way (down, middle, up) and one size are paired from the last one on: what a way hands on at a size is
    comparable whatever number of blocks led there.
    """

    def grouped(sizes: Sizes) -> dict[tuple[str, tuple[int, int]], list[str]]:
        groups: dict[tuple[str, tuple[int, int]], list[str]] = {}
        for name, size in sizes.items():
            groups.setdefault((name.split(".")[0], size), []).append(name)
        return groups

    others = grouped(student)
    found = {
        one: other
        for key, names in grouped(teacher).items()
        for one, other in zip(reversed(names), reversed(others.get(key, [])), strict=False)
    }
    return [(name, found[name]) for name in teacher if name in found]
