"""The groups of channels of a network: which channels of which layers can only be removed together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from gendistill.networks.pruning.disjoint_sets import DisjointSets
from gendistill.networks.pruning.layers import CONV, LAYERS, UNFOLLOWED, LayerSide, count_of, get_module, sides
from gendistill.networks.pruning.tracing import Node, trace

Channel = tuple[Node, str, int]  # a number on one side of a node


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
    return _Grouping(trace(network, inputs), network, tuple(keep)).groups()


class _Grouping:
    def __init__(self, nodes: Sequence[Node], network: nn.Module, keep: tuple[str, ...]) -> None:
        self.nodes, self.network, self.keep = nodes, network, keep
        owners: dict[int, set[nn.Module]] = defaultdict(set)
        for module in network.modules():
            for weight in module.parameters(recurse=False):
                owners[id(weight)].add(module)
        self.sharing = {module for modules in owners.values() if len(modules) > 1 for module in modules}

    def groups(self) -> list[ChannelGroup]:
        channels, made, frozen = self._joined()
        reasons: dict[Channel, str] = {}
        for channel, why in frozen.items():
            reasons.setdefault(channels[channel], why)
        atoms: dict[Channel, dict[LayerSide, list[int]]] = defaultdict(lambda: defaultdict(list))
        indices: dict[tuple[Node, str], list[int]] = defaultdict(list)
        for node, side, index in channels:
            indices[node, side].append(index)
        for node, side in (each for each in indices if each[0].layer is not None):
            for index in sorted(indices[node, side]):
                if (root := channels[node, side, index]) in made:
                    atoms[root][LayerSide(node.path, side)].append(index)
        alike: dict[tuple[object, ...], list[dict[LayerSide, list[int]]]] = defaultdict(list)
        for root, members in atoms.items():
            kind = tuple(sorted((side, len(indices)) for side, indices in members.items()))
            alike[(reasons.get(root, ""), *kind)].append(members)
        groups = [self._group(atoms, str(kind[0])) for kind, atoms in alike.items()]
        return [self._blocks(group) for group in self._norms(groups)]

    def _joined(self) -> tuple[DisjointSets[Channel], set[Channel], dict[Channel, str]]:
        """All channels, those joined that are linked; one of each set that a layer makes; and why some must stay."""
        channels, frozen = DisjointSets[Channel](), dict[Channel, str]()

        def at(node: Node, side: str, index: int) -> Channel:
            channel = (node, side, index)
            if channel not in channels:
                channels.add(channel)
                size, why = self._size(node, side), self._why_frozen(node, side)
                if why or (size is not None and index >= size):
                    frozen[channel] = why or f"{node.path}, whose {size} channels do not fit what they come from"
            return channel

        makers = [node for node in self.nodes if node.frozen == "the input" or isinstance(node.layer, (*LAYERS, nn.Parameter))]
        made = [
            at(node, sides(node.layer)[1], k) for node in makers for k in range(self._size(node, sides(node.layer)[1]) or 0)
        ]
        for node in self.nodes:
            side = sides(node.layer)[1]
            for other, table in node.links:
                for index in range(len(table) if table is not None else self._width(node)):
                    for to in [index] if table is None else table[index]:
                        channels.merge(at(node, side, index), at(other, sides(other.layer)[0], to))
        return channels, {channels[channel] for channel in made}, frozen

    def _size(self, node: Node, side: str) -> int | None:
        """Channels on a side of a layer or input; None of an operation."""
        if node.frozen == "the input":
            return self._width(node)
        alone = isinstance(node.layer, nn.PReLU) and node.layer.num_parameters == 1
        return None if alone or not isinstance(node.layer, (*LAYERS, nn.Parameter)) else count_of(node.layer, side)

    def _width(self, node: Node) -> int:
        """Numbers along the dimension of a node's output that counts its channels."""
        shape = node.shape
        return shape[node.channel] if shape and node.channel is not None and node.channel < len(shape) else 0

    def _why_frozen(self, node: Node, side: str) -> str:
        if node.frozen and side == sides(node.layer)[1]:
            return node.frozen
        layer, path = node.layer, node.path
        if layer is None or isinstance(layer, nn.Parameter):
            return ""
        if any(path == kept or path.startswith(kept + ".") for kept in self.keep):
            return "keep"
        if layer in self.sharing:
            return f"{path} (its weight is another layer's too)"
        if isinstance(layer, UNFOLLOWED):
            return f"{path} ({type(layer).__name__})"
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            return f"{path} (LayerNorm over space)"
        if isinstance(layer, CONV) and layer.groups > 1 and layer.in_channels != layer.out_channels:
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
        linked = DisjointSets(sorted({k for together in of_norm.values() for k in together}))
        for together in of_norm.values():
            for k in together[1:]:
                linked.merge(together[0], k)
        for some in linked.subsets():
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
            if isinstance(layer, nn.GroupNorm) and not complete_norm_groups(layer, indices):
                blocks = math.lcm(blocks, layer.num_groups)
            if isinstance(layer, CONV) and layer.groups > 1 and side.side != "both":
                channels = layer.in_channels if side.side == "in" else layer.out_channels
                if indices.size != channels:
                    return replace(group, frozen=f"{side.path} (grouped, of channels from several layers)")
                blocks = math.lcm(blocks, layer.groups)
        if group.size % blocks:
            return replace(group, frozen=f"{group.name} ({group.size} channels do not divide into {blocks})")
        return replace(group, blocks=blocks)


def complete_norm_groups(norm: nn.GroupNorm, indices: np.ndarray) -> bool:
    """Whether each channel (size, m) of a group stands for whole groups of a norm."""
    per = norm.num_channels // norm.num_groups
    runs = indices.shape[1] % per == 0 and (indices[:, 0] % per == 0).all()
    return bool(runs and (np.diff(indices, axis=1) == 1).all())


def merged(group: ChannelGroup, run: int) -> ChannelGroup:
    """`run` channels that follow each other become one."""
    return replace(group, members={side: rows.reshape(len(rows) // run, -1) for side, rows in group.members.items()})
