"""The groups of channels of a network: which channels of which layers can only be removed together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from torch_pruning.dependency import Node

from gendistill.networks.pruning.tracing import MODULES, UNFOLLOWED, Trace, channel_dim, trace


class LayerSide(NamedTuple):
    """The channels of a layer or bare parameter `path` that come in, go out, or both at once (a norm, a depthwise conv)."""

    path: str
    side: str


COUNTS = {  # what a layer calls the number of its channels on a side
    "in": ("in_channels", "in_features"),
    "out": ("out_channels", "out_features"),
    "both": ("out_channels", "num_features", "num_channels", "num_parameters", "embedding_dim", "normalized_shape"),
}


def count_name(layer: object, side: str) -> str:
    """The attribute of a layer that counts its channels on a side."""
    return next(name for name in COUNTS[side] if hasattr(layer, name))


def channel_axis(layer: object, side: str) -> int:
    """Which dimension of a layer's weight, or of a bare parameter, counts the channels on a side."""
    if isinstance(layer, nn.Parameter):
        return channel_dim(layer) or 0
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 0 if side == "both" else int((side == "in") != layer.transposed)
    return int(isinstance(layer, nn.Embedding) or (isinstance(layer, nn.Linear) and side == "in"))


def count_of(layer: object, side: str) -> int:
    """The number of channels on a side of a layer or bare parameter."""
    if isinstance(layer, nn.Parameter):
        return layer.shape[channel_axis(layer, side)]
    count = getattr(layer, count_name(layer, side))
    return int(count[0] if isinstance(count, tuple) else count)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`size` channels, each of which is rows of the same layers and is interchangeable with the others.

    Attributes:
        members: for each side of a layer that takes part, the indices (size, m) that each channel stands for there.
        blocks: so many equal runs of channels must keep equally many each (grouped convolutions, group norm).
        frozen: why none of it can be removed; empty where it can.
    """

    members: dict[LayerSide, np.ndarray]
    blocks: int = 1
    frozen: str = ""

    @property
    def size(self) -> int:
        return len(next(iter(self.members.values())))

    @property
    def name(self) -> str:
        """The layer that makes the channels, to speak of the group."""
        return next((side.path for side in self.members if side.side == "out"), next(iter(self.members)).path)


def channel_groups(network: nn.Module, inputs: Sequence[Tensor], keep: Sequence[str] = ()) -> list[ChannelGroup]:
    """Trace the network and sort its channels into groups; those of the input and output are in none.

    Args:
        keep: paths of modules of which no channel is to be removed.
    """
    found = trace(network, inputs)
    return _Grouping(found, network, tuple(keep)).groups()


@dataclass
class _Union:
    """Disjoint sets of numbers."""

    parent: list[int] = field(default_factory=list)

    def new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, k: int) -> int:
        while self.parent[k] != k:
            self.parent[k] = self.parent[self.parent[k]]
            k = self.parent[k]
        return k

    def join(self, a: int, b: int) -> None:
        self.parent[self.find(b)] = self.find(a)


class _Grouping:
    def __init__(self, found: Trace, network: nn.Module, keep: tuple[str, ...]) -> None:
        self.trace, self.network, self.keep = found, network, keep
        self.sets = _Union()
        self.slots: dict[tuple[Node, str], dict[int, int]] = defaultdict(dict)
        self.frozen: dict[int, str] = {}
        owners: dict[int, set[nn.Module]] = defaultdict(set)
        for module in network.modules():
            for weight in module.parameters(recurse=False):
                owners[id(weight)].add(module)
        self.sharing = {module for modules in owners.values() if len(modules) > 1 for module in modules}

    def groups(self) -> list[ChannelGroup]:
        self._spread()
        reasons: dict[int, str] = {}
        for slot, why in self.frozen.items():
            reasons.setdefault(self.sets.find(slot), why)
        atoms: dict[int, dict[LayerSide, list[int]]] = defaultdict(lambda: defaultdict(list))
        for (node, side), slots in self.slots.items():
            if (path := self._path(node)) is not None:
                for index, slot in sorted(slots.items()):
                    atoms[self.sets.find(slot)][LayerSide(path, side)].append(index)
        alike: dict[tuple[object, ...], list[dict[LayerSide, list[int]]]] = defaultdict(list)
        for root, members in atoms.items():
            kind = tuple(sorted((side, len(indices)) for side, indices in members.items()))
            alike[(reasons.get(root, ""), *kind)].append(members)
        groups = [self._group(atoms, str(kind[0])) for kind, atoms in alike.items()]
        return [self._blocks(group) for group in self._norms(groups)]

    def _path(self, node: Node) -> str | None:
        path = self.trace.paths.get(node)
        return path.removeprefix("network.") if path is not None and path.startswith("network.") else None

    def _spread(self) -> None:
        """Join the channels of all sides that are linked, from every layer's output on."""
        waiting: list[tuple[Node, str, list[int]]] = []
        for node in self.trace.graph.module2node.values():
            side = self.trace.sides(node)[1]
            if (size := self.trace.size(node, side)) is not None and isinstance(node.module, (*MODULES, nn.Parameter)):
                waiting.append((node, side, list(range(size))))
        for node, side, indices in waiting:
            self._slots(node, side, indices)
        while waiting:
            node, side, indices = waiting.pop()
            for mine, other, theirs, table in self.trace.links[node]:
                if mine != side:
                    continue
                fresh: list[int] = []
                for index in indices:
                    for to in [index] if table is None else table[index] if index < len(table) else []:
                        fresh += self._slots(other, theirs, [to])
                        self.sets.join(self.slots[node, side][index], self.slots[other, theirs][to])
                if fresh:
                    waiting.append((other, theirs, fresh))

    def _slots(self, node: Node, side: str, indices: list[int]) -> list[int]:
        slots, fresh = self.slots[node, side], [index for index in indices if index not in self.slots[node, side]]
        if not fresh:
            return fresh
        size, why = self.trace.size(node, side), self._why_frozen(node, side)
        for index in fresh:
            slots[index] = self.sets.new()
            if why or (size is not None and index >= size):
                self.frozen[slots[index]] = why or f"{self._path(node)}, whose {size} channels do not fit what they come from"
        return fresh

    def _why_frozen(self, node: Node, side: str) -> str:
        if (node, side) in self.trace.frozen:
            return self.trace.frozen[node, side]
        path = self.trace.paths.get(node)
        if path is None or isinstance(node.module, nn.Parameter):
            return ""
        if not path.startswith("network."):
            return "the input" if path.startswith("doors") else ""
        path = path.removeprefix("network.")
        if any(path == kept or path.startswith(kept + ".") for kept in self.keep):
            return "keep"
        layer = node.module
        if layer in self.sharing:
            return f"{path} (its weight is another layer's too)"
        if isinstance(layer, UNFOLLOWED):
            return f"{path} ({type(layer).__name__})"
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            return f"{path} (LayerNorm over space)"
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1 and layer.in_channels != layer.out_channels:
            depthwise = layer.groups in (layer.in_channels, layer.out_channels)
            return f"{path} (depthwise, {layer.in_channels} channels to {layer.out_channels})" if depthwise else ""
        return ""

    def _group(self, atoms: list[dict[LayerSide, list[int]]], frozen: str) -> ChannelGroup:
        members = {side: np.array([atom[side] for atom in atoms]) for side in atoms[0]}
        order = np.argsort(next(iter(members.values()))[:, 0], kind="stable")
        return ChannelGroup({side: indices[order] for side, indices in members.items()}, frozen=frozen)

    def _norms(self, groups: list[ChannelGroup]) -> list[ChannelGroup]:
        """Whole groups of a group norm go at once where that leaves more choice: 32 groups of 64 channels.

        The norm then has fewer groups, as large as before. Groups of channels whose norms are linked are decided together.
        """
        of_norm: dict[str, list[int]] = defaultdict(list)
        for k, group in enumerate(groups):
            for side in group.members:
                if not group.frozen and isinstance(get_module(self.network, side.path), nn.GroupNorm):
                    of_norm[side.path].append(k)
        linked = _Union(list(range(len(groups))))
        for together in of_norm.values():
            for k in together[1:]:
                linked.join(together[0], k)
        for root in {linked.find(k) for together in of_norm.values() for k in together}:
            some = [k for k in range(len(groups)) if linked.find(k) == root]
            whole = {k: self._run(groups[k]) for k in some}
            thin = {k: self._count(groups[k]) for k in some}
            if all(run for run in whole.values()) and sum(whole[k] or 0 for k in some) < sum(thin.values()):
                for k in some:
                    groups[k] = merged(groups[k], whole[k] or 1)
        return groups

    def _run(self, group: ChannelGroup) -> int | None:
        """Channels in the whole norm groups that can go at once; None where they do not lie together."""
        run = 1
        for side, indices in group.members.items():
            layer = get_module(self.network, side.path)
            if isinstance(layer, nn.GroupNorm):
                per = layer.num_channels // layer.num_groups
                run = math.lcm(run, per // math.gcd(per, indices.shape[1]))
                if indices[0, 0] % per or (np.diff(indices.ravel()) != 1).any():
                    return None
        return run if group.size % run == 0 else None

    def _count(self, group: ChannelGroup) -> int:
        layers = [get_module(self.network, side.path) for side in group.members]
        return math.lcm(*(layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)))

    def _blocks(self, group: ChannelGroup) -> ChannelGroup:
        """Equal shares of the groups of a norm or a grouped convolution."""
        if group.frozen:
            return group
        blocks = 1
        for side, indices in group.members.items():
            layer = get_module(self.network, side.path)
            if isinstance(layer, nn.GroupNorm) and not whole_norm_groups(layer, indices):
                blocks = math.lcm(blocks, layer.num_groups)
            if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1 and side.side != "both":
                channels = layer.in_channels if side.side == "in" else layer.out_channels
                if indices.size != channels:
                    return replace(group, frozen=f"{side.path} (grouped, of channels from several layers)")
                blocks = math.lcm(blocks, layer.groups)
        if group.size % blocks:
            return replace(group, frozen=f"{group.name} ({group.size} channels do not divide into {blocks})")
        return replace(group, blocks=blocks)


def whole_norm_groups(norm: nn.GroupNorm, indices: np.ndarray) -> bool:
    """Whether each channel (size, m) of a group stands for whole groups of a norm."""
    per = norm.num_channels // norm.num_groups
    runs = indices.shape[1] % per == 0 and (indices[:, 0] % per == 0).all()
    return bool(runs and (np.diff(indices, axis=1) == 1).all())


def merged(group: ChannelGroup, run: int) -> ChannelGroup:
    """`run` channels that follow each other become one."""
    return replace(group, members={side: rows.reshape(len(rows) // run, -1) for side, rows in group.members.items()})


def get_module(network: nn.Module, path: str) -> object:
    """The module or parameter at a path; the network itself for ""."""
    found: object = network
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found
