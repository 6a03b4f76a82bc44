"""Numbers of channels that a module noted when it was built and its forward reads: `x.view(-1, self.channels, 4, 4)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup
from gendistill.networks.pruning.layers import LayerSide, count_of, get_module
from gendistill.networks.pruning.pruned_architecture import integers


@dataclass(frozen=True)
class CachedSize:
    """The attribute `name` of the module `path` was `value` when `side` had `full` channels, and goes with their number."""

    path: str
    name: str
    value: int
    side: LayerSide
    full: int


def cached_sizes(network: nn.Module, group: ChannelGroup) -> list[CachedSize]:
    """Numbers that equal a count of this group's channels, in the modules that hold its layers."""
    found: dict[tuple[str, str], CachedSize] = {}
    for side in group.members:
        layer = get_module(network, side.path)
        if isinstance(layer, nn.Parameter | nn.LayerNorm | nn.PReLU):
            continue
        full = count_of(layer, side.side)
        parts = side.path.split(".")
        for above in (".".join(parts[:k]) for k in range(len(parts))):
            module = get_module(network, above)
            assert isinstance(module, nn.Module)
            for name, value in integers(module).items():
                if value in (full, group.size):
                    found.setdefault((above, name), CachedSize(above, name, value, side, full))
    return list(found.values())


def update_cached_sizes(network: nn.Module, sizes: Sequence[CachedSize]) -> None:
    """Write the numbers that go with the layers' channels of now, in place."""
    for size in sizes:
        now = count_of(get_module(network, size.side.path), size.side.side)
        setattr(get_module(network, size.path), size.name, size.value * now // size.full)
