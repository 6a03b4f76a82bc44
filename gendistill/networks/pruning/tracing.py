"""The channel dependency graph of a network, built from the autograd graph of one forward pass.

Nodes are layers, bare parameters, inputs and the operations between them (Fang et al. 2023, "DepGraph"). Each edge has the
exact map of channel indices through views, concatenation, splits, slices, pixel shuffle, broadcasting and reductions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from gendistill.networks.counting import one_sample
from gendistill.networks.pruning.layers import LAYERS, UNFOLLOWED, channel_dim
from gendistill.networks.pruning.operations import Table, channel_map, compose, name_of, shape_of, split_table

PRODUCTS = {"Bmm": (0, 1), "Mm": (0, 0), "Addmm": (1, 0), "Baddbmm": (1, 1)}  # position of the first factor, batch dimensions


@dataclass(eq=False)
class Node:
    """A layer, a bare parameter, an input, or an operation between these.

    Attributes:
        function: the autograd node of the output; for a layer with several calls, that of the last call.
        path: of a layer or a bare parameter; empty for others.
        layer: the layer or parameter itself; None for an operation and an input.
        reads: for each input: its position, the node that computed it, and the index of that node's output.
        channel: the channel dimension of the output; None where it has none.
        links: the edges to other nodes, each with the table from output channels to that node's input channels; None is the
            identity.
        frozen: why the output channels cannot be pruned; empty where they can.
        turn: the position of the first call in the order of execution.
    """

    function: Any
    path: str = ""
    layer: nn.Module | nn.Parameter | None = None
    reads: list[tuple[int, Node, int]] = field(default_factory=list)
    channel: int | None = None
    links: list[tuple[Node, Table | None]] = field(default_factory=list)
    frozen: str = ""
    turn: int = -1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the output; None where autograd did not record it."""
        return tuple(self.layer.shape) if isinstance(self.layer, nn.Parameter) else shape_of(self.function)


Call = tuple[nn.Module, list[tuple[Any, int]]]  # a layer; the autograd node and the output index of each of its inputs


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> list[Node]:
    """Run the network on one sample and build the graph. `network` is left in eval mode, with gradients enabled everywhere.

    Raises:
        Exception: from the network's forward.
    """
    network.eval().requires_grad_(True)
    kinds = (*LAYERS, *UNFOLLOWED)
    layers: dict[Any, str] = {layer: path for path, layer in network.named_modules() if isinstance(layer, kinds)}
    calls: dict[Any, Call] = {}

    def record_call(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.requires_grad]
        # a layer that returns its input, or a view that an operation in place would detach from it, needs a node of its own
        if isinstance(output, Tensor) and (output._is_view() or any(output is x for x in tensors)):
            output = output.clone()
        edges = [(edge.node, edge.output_nr) for edge in map(get_gradient_edge, tensors)]
        calls[tree_leaves(output)[0].grad_fn] = layer, edges
        return output

    handles = [layer.register_forward_hook(record_call, with_kwargs=True) for layer in layers]
    try:
        with torch.enable_grad():
            arguments = [_tracked(x) for x in one_sample(inputs)]
            outputs = tree_leaves(network(*arguments))
    finally:
        for handle in handles:
            handle.remove()
    ends = [x.grad_fn for x in outputs if isinstance(x, Tensor) and x.grad_fn is not None]
    in_layers = {id(weight) for layer in layers for weight in layer.parameters()}
    named: dict[Any, str] = {weight: name for name, weight in network.named_parameters() if id(weight) not in in_layers}
    nodes = _nodes(ends, calls, layers | {weight: name for weight, name in named.items() if channel_dim(weight) is not None})
    for x in arguments:
        if isinstance(x, Tensor) and (node := nodes.get(x.grad_fn)) is not None:
            node.channel, node.frozen, node.reads = (1 if x.ndim in (4, 5) else x.ndim - 1), "the input", []
    for function in ends:
        nodes[function].frozen = nodes[function].frozen or "the output"
    unique = list(dict.fromkeys(nodes.values()))
    for node in sorted(unique, key=lambda node: node.turn):
        _link(node)
    return unique


def _tracked(x: Any) -> Any:
    """An input whose channels autograd tracks: a float tensor of at least 2 dimensions, not class numbers or timesteps."""
    tracked = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2
    return x.detach().requires_grad_(True).clone() if tracked else x


def _nodes(ends: list[Any], calls: dict[Any, Call], paths: dict[Any, str]) -> dict[Any, Node]:
    """All nodes by autograd function, from the outputs to the inputs. A layer is one node, also with several calls."""
    nodes: dict[Any, Node] = {}
    layer_nodes: dict[Any, Node] = {}

    def at(function: Any) -> Node:
        if function not in nodes:
            layer = calls[function][0] if function in calls else getattr(function, "variable", None)
            node = layer_nodes.get(layer) if layer is not None else None
            node = node or Node(function, paths.get(layer, ""), layer)
            turn = -1 if isinstance(layer, nn.Parameter) else function._sequence_nr()
            nodes[function], node.turn = node, turn if node.turn < 0 else min(node.turn, turn)
            if layer is not None:
                layer_nodes[layer] = node
        return nodes[function]

    stack, visited = ends[::-1], set()
    while stack:
        if (function := stack.pop()) in visited:
            continue
        visited.add(function)
        node = at(function)
        sources = calls[function][1] if function in calls else getattr(function, "next_functions", ())
        for position, (source, index) in enumerate(sources):
            if source is not None and (not hasattr(source, "variable") or source.variable in paths):
                node.reads.append((position, at(source), index))
                stack.append(source)
    return nodes


def _link(node: Node) -> None:
    """Determine the channel dimension of the node's output and add the edges from its inputs."""
    name = name_of(node.function)
    if node.layer is not None:
        node.channel = _layer_channel(node)
        for _, source, index in node.reads:
            _join(node, source, index, None)
    elif product := next((at for kind, at in PRODUCTS.items() if name.startswith(kind)), None):
        _link_product(node, *product)
    else:
        _link_operation(node, name)


def _link_operation(node: Node, name: str) -> None:
    target = node.shape
    for position, source, index in node.reads:
        if (dim := source.channel) is None:
            continue
        shape = source.shape if isinstance(source.layer, nn.Parameter) else shape_of(source.function, index)
        mapped = channel_map(name, node.function, position, shape, dim, target) if shape and target else (dim, None)
        if mapped is None or node.channel not in (None, mapped[0]):
            continue  # reduced, broadcast, or another dimension; remaining dependencies are found by `trials`
        node.channel = mapped[0]
        _join(node, source, index, mapped[1])


def _link_product(node: Node, first: int, batch: int) -> None:
    """Matrix product (N, K) x (K, M): channels along N or M are channels of the output; channels along K are summed."""
    along = {position - first: source.channel for position, source, _ in node.reads}
    summed = along.get(0) == batch + 1 and along.get(1) == batch
    for position, source, index in node.reads:
        factor = position - first
        if summed or (node.channel is None and factor >= 0 and along[factor] == batch + factor):
            node.channel = None if summed else batch + factor
            _join(node, source, index, None)


def _layer_channel(node: Node) -> int | None:
    layer, shape = node.layer, node.shape
    if isinstance(layer, nn.Parameter):
        return channel_dim(layer)
    if isinstance(layer, nn.LayerNorm) and shape:  # a channels-first variant permutes inside and returns channels first
        dims = [source.channel for _, source, _ in node.reads if source.channel is not None]
        return dims[0] if dims and dims[0] < len(shape) and shape[dims[0]] == layer.normalized_shape[-1] else len(shape) - 1
    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding, *UNFOLLOWED)):
        return len(shape) - 1 if shape else None
    return 1


def _join(node: Node, source: Node, index: int, table: Table | None) -> None:
    """Add an edge; `table` maps channels of output `index` of `source` to channels of `node`'s input."""
    if source.channel is not None and (part := split_table(source.function, index, source.channel)) is not None:
        table = compose(part, table)
    source.links.append((node, table))
