"""Channel counts that a module stores as attributes and reads in its forward: `x.view(-1, self.channels, 4, 4)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup
from gendistill.networks.pruning.layers import LayerSide, count_of, get_module
from gendistill.networks.pruning.pruned_architecture import integers, set_integer


@dataclass(frozen=True)
class CachedSize:
    """Attribute `name` of the module at `path`: `value` with all `full` channels of `side`, and proportional to their count."""

    path: str
    name: str
    value: int
    side: LayerSide
    full: int


def cached_sizes(network: nn.Module, group: ChannelGroup) -> list[CachedSize]:
    """Integer attributes that may follow from a channel count of this group.

    Those that equal it, in the modules that contain its layers and in modules without parameters (`Unflatten`, reshapes of the
    user). In the module of the layer itself also multiples of the count: from `self.channels`, a forward computes the widths
    of queries and keys as `self.channels // 8`.
    """
    modules = dict(network.named_modules())
    reshapes = [path for path, module in modules.items() if integers(module) and next(module.parameters(), None) is None]
    sizes: dict[tuple[str, str], CachedSize] = {}
    for side in group.members:
        layer = get_module(network, side.path)
        if isinstance(layer, nn.LayerNorm | nn.PReLU):
            continue
        full = count_of(layer, side.side)
        parts = side.path.split(".")
        above = [".".join(parts[:k]) for k in range(len(parts))]
        for path in [*above, *reshapes]:
            for name, value in integers(modules[path]).items():
                if value in (full, group.size) or (path == above[-1] and value % full == 0):
                    sizes.setdefault((path, name), CachedSize(path, name, value, side, full))
    return list(sizes.values())


def update_cached_sizes(network: nn.Module, sizes: Sequence[CachedSize]) -> None:
    """Set the attributes to the values for the current channel counts, in place."""
    for size in sizes:
        count = count_of(get_module(network, size.side.path), size.side.side)
        set_integer(get_module(network, size.path), size.name, size.value * count // size.full)
