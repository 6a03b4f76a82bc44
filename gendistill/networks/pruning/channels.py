"""Channel groups: the channels of coupled layers that can only be pruned together (Fang et al. 2023, "DepGraph")."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from gendistill.networks.pruning.disjoint_sets import DisjointSets
from gendistill.networks.pruning.layers import CONV, LAYERS, UNFOLLOWED, LayerSide, count_of, get_module
from gendistill.networks.pruning.tracing import Node, trace

Channel = tuple[Node, str, int]  # a node, a side, and a channel index


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`size` interchangeable channels, each with the same coupled layers.

    Attributes:
        members: for each side of each coupled layer, the indices (size, m) of the m layer channels of each group channel.
        blocks: number of equal runs of channels that must keep the same width (grouped convolutions, group norm).
        frozen: why the group cannot be pruned; empty where it can.
    """

    members: dict[LayerSide, np.ndarray]
    blocks: int = 1
    frozen: str = ""

    @property
    def size(self) -> int:
        return len(next(iter(self.members.values())))

    @property
    def name(self) -> str:
        """The path of the layer that outputs the channels; it identifies the group in messages."""
        return next((side.path for side in self.members if side.side == "out"), next(iter(self.members)).path)


def channel_groups(network: nn.Module, inputs: Sequence[Tensor], keep: Sequence[str] = ()) -> list[ChannelGroup]:
    """Trace the network and divide its channels into groups.

    Args:
        keep: paths of modules whose channels are not pruned.
    """
    return _Grouping(trace(network, inputs), network, tuple(keep)).groups()


class _Grouping:
    def __init__(self, nodes: Sequence[Node], network: nn.Module, keep: tuple[str, ...]) -> None:
        self.nodes, self.network, self.keep = nodes, network, keep
        owners: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)
        for module in network.modules():
            for weight in module.parameters(recurse=False):
                owners[weight].add(module)
        tied = {weight: modules for weight, modules in owners.items() if len(modules) > 1}
        self.weight_tied = {module for modules in tied.values() for module in modules} | tied.keys()

    def groups(self) -> list[ChannelGroup]:
        channels, produced, frozen = self._coupled()
        reasons: dict[Channel, str] = {}
        for channel, reason in frozen.items():
            reasons.setdefault(channels[channel], reason)
        atoms: dict[Channel, dict[LayerSide, list[int]]] = defaultdict(lambda: defaultdict(list))
        indices: dict[tuple[Node, str], list[int]] = defaultdict(list)
        for node, side, index in channels:
            indices[node, side].append(index)
        for node, side in (pair for pair in indices if pair[0].layer is not None):
            for index in sorted(indices[node, side]):
                if (root := channels[node, side, index]) in produced:
                    atoms[root][LayerSide(node.path, side)].append(index)
        interchangeable: dict[tuple[object, ...], list[dict[LayerSide, list[int]]]] = defaultdict(list)
        for root, members in atoms.items():
            kind = tuple(sorted((side, len(indices)) for side, indices in members.items()))
            interchangeable[(reasons.get(root, ""), *kind)].append(members)
        groups = [self._group(atoms, str(kind[0])) for kind, atoms in interchangeable.items() if not self._unread(atoms[0])]
        return [self._blocks(group) for group in self._norms(groups)]

    def _coupled(self) -> tuple[DisjointSets[Channel], set[Channel], dict[Channel, str]]:
        """Disjoint sets of coupled channels; the roots of the sets that a layer or input produces; reasons for frozen ones."""
        channels, frozen = DisjointSets[Channel](), dict[Channel, str]()

        def at(node: Node, side: str, index: int) -> Channel:
            channel = (node, side, index)
            if channel not in channels:
                channels.add(channel)
                size, reason = self._size(node, side), self._why_frozen(node, side)
                if reason or (size is not None and index >= size):
                    frozen[channel] = reason or f"{node.path}, whose {size} channels do not match its input"
            return channel

        sources = [node for node in self.nodes if node.frozen == "the input" or isinstance(node.layer, (*LAYERS, nn.Parameter))]
        produced = [at(node, node.sides[1], k) for node in sources for k in range(self._size(node, node.sides[1]) or 0)]
        for node in self.nodes:
            side = node.sides[1]
            for reader, table in node.links:
                for index in range(len(table) if table is not None else node.width):
                    for target in [index] if table is None else table[index]:
                        channels.merge(at(node, side, index), at(reader, reader.sides[0], target))
        return channels, {channels[channel] for channel in produced}, frozen

    def _size(self, node: Node, side: str) -> int | None:
        """The number of channels on a side of a layer or input; None for an operation."""
        if node.frozen == "the input":
            return node.width
        shared_slope = isinstance(node.layer, nn.PReLU) and node.layer.num_parameters == 1
        return None if shared_slope or not isinstance(node.layer, (*LAYERS, nn.Parameter)) else count_of(node.layer, side)

    def _why_frozen(self, node: Node, side: str) -> str:
        if node.frozen and side == node.sides[1]:
            return node.frozen
        layer, path = node.layer, node.path
        if layer is None:
            return ""
        if any(path == kept or path.startswith(kept + ".") for kept in self.keep):
            return "keep"
        if layer in self.weight_tied:
            return f"{path} (its weight is tied to another layer)"
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

    def _unread(self, members: Collection[LayerSide]) -> bool:
        """Whether the channels are one axis of a bare parameter that nothing sums over, such as the places of tokens."""
        return len(members) == 1 and isinstance(get_module(self.network, next(iter(members)).path), nn.Parameter)

    def _norms(self, groups: list[ChannelGroup]) -> list[ChannelGroup]:
        """Prune complete groups of a group norm where this allows more widths: for example, 32 groups of 64 channels.

        The norm then has fewer groups of the same size. Channel groups with norms in common are decided together.
        """
        by_norm: dict[str, list[int]] = defaultdict(list)
        for k, group in enumerate(groups):
            for side in group.members:
                if not group.frozen and isinstance(get_module(self.network, side.path), nn.GroupNorm):
                    by_norm[side.path].append(k)
        linked = DisjointSets(sorted({k for indices in by_norm.values() for k in indices}))
        for indices in by_norm.values():
            for k in indices[1:]:
                linked.merge(indices[0], k)
        for subset in linked.subsets():
            runs = {k: self._run(groups[k]) for k in subset}
            counts = {k: self._count(groups[k]) for k in subset}
            if all(run for run in runs.values()) and sum(runs[k] or 0 for k in subset) < sum(counts.values()):
                for k in subset:
                    groups[k] = merged(groups[k], runs[k] or 1)
        return groups

    def _run(self, group: ChannelGroup) -> int | None:
        """The least number of channels that fill complete norm groups; None where those channels are not adjacent."""
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
        """Set `blocks` for norms and grouped convolutions whose groups must keep equal widths."""
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
                    return replace(group, frozen=f"{side.path} (grouped, with channels from several layers)")
                blocks = math.lcm(blocks, layer.groups)
        if group.size % blocks:
            return replace(group, frozen=f"{group.name} ({group.size} channels cannot be divided by {blocks})")
        return replace(group, blocks=blocks)


def complete_norm_groups(norm: nn.GroupNorm, indices: np.ndarray) -> bool:
    """Whether each channel of a group, with indices (size, m) in the norm, covers complete groups of the norm."""
    per = norm.num_channels // norm.num_groups
    runs = indices.shape[1] % per == 0 and (indices[:, 0] % per == 0).all()
    return bool(runs and (np.diff(indices, axis=1) == 1).all())


def merged(group: ChannelGroup, run: int) -> ChannelGroup:
    """The group in which each run of `run` consecutive channels is one channel."""
    return replace(group, members={side: rows.reshape(len(rows) // run, -1) for side, rows in group.members.items()})
