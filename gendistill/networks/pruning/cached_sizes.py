"""Channel counts that a module stores as attributes and reads in its forward: `x.view(-1, self.channels, 4, 4)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup
from gendistill.networks.pruning.layers import LayerSide, count_of, get_module
from gendistill.networks.pruning.pruned_architecture import integers


@dataclass(frozen=True)
class CachedSize:
    """Attribute `name` of the module at `path`: `value` with all `full` channels of `side`, and proportional to their count."""

    path: str
    name: str
    value: int
    side: LayerSide
    full: int


def cached_sizes(network: nn.Module, group: ChannelGroup) -> list[CachedSize]:
    """Integer attributes that equal a channel count of this group, in the modules that contain its layers."""
    sizes: dict[tuple[str, str], CachedSize] = {}
    for side in group.members:
        layer = get_module(network, side.path)
        if isinstance(layer, nn.LayerNorm | nn.PReLU):
            continue
        full = count_of(layer, side.side)
        parts = side.path.split(".")
        for above in (".".join(parts[:k]) for k in range(len(parts))):
            module = get_module(network, above)
            assert isinstance(module, nn.Module)
            for name, value in integers(module).items():
                if value in (full, group.size):
                    sizes.setdefault((above, name), CachedSize(above, name, value, side, full))
    return list(sizes.values())


def update_cached_sizes(network: nn.Module, sizes: Sequence[CachedSize]) -> None:
    """Set the attributes to the values for the current channel counts, in place."""
    for size in sizes:
        count = count_of(get_module(network, size.side.path), size.side.side)
        setattr(get_module(network, size.path), size.name, size.value * count // size.full)
