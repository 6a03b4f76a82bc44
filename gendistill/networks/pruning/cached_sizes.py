"""Numbers of channels that a module noted when it was built and its forward reads: `x.view(-1, self.channels, 4, 4)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup, get_module
from gendistill.networks.pruning.pruned_architecture import integers


@dataclass(frozen=True)
class Remembered:
    """The attribute `name` of the module `path` counts `per` for each channel that the layer `layer` has now.

    `attribute` is the layer's own count ("out_channels", ...), of which `whole` stood for `value`.
    """

    path: str
    name: str
    value: int
    layer: str
    attribute: str
    whole: int


COUNTS = {
    "out": ("out_channels", "out_features", "embedding_dim"),
    "in": ("in_channels", "in_features"),
    "both": ("num_features", "num_channels", "out_channels", "embedding_dim"),
}


def remembered(network: nn.Module, group: ChannelGroup) -> list[Remembered]:
    """Numbers that equal a count of this group's channels, in the modules that hold its layers."""
    found: dict[tuple[str, str], Remembered] = {}
    for side in group.members:
        layer = get_module(network, side.path)
        attribute = next((name for name in COUNTS[side.side] if hasattr(layer, name)), None)
        if attribute is None or isinstance(layer, nn.Parameter):
            continue
        whole = int(getattr(layer, attribute))
        parts = side.path.split(".")
        for above in (".".join(parts[:k]) for k in range(len(parts))):
            module = get_module(network, above)
            assert isinstance(module, nn.Module)
            for name, value in integers(module).items():
                if value in (whole, group.size):
                    found.setdefault((above, name), Remembered(above, name, value, side.path, attribute, whole))
    return list(found.values())


def set_remembered(network: nn.Module, notes: Sequence[Remembered]) -> None:
    """Write the counts of now, in place."""
    for note in notes:
        now = int(getattr(get_module(network, note.layer), note.attribute))
        setattr(get_module(network, note.path), note.name, note.value * now // note.whole)
