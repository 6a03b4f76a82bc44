"""How channel numbers travel through a network: what autograd recorded of one run, with an exact map at every operation.

Layers, bare parameters and inputs are linked through the operations between them (Fang et al. 2023, "DepGraph"). Each link has
the map of channel numbers that follows from the recorded shapes: through views, concatenation, splits, slices, pixel shuffle,
broadcasting, reductions.
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
from gendistill.networks.pruning.operations import Table, chain, name_of, shape_of, split_table, through

PRODUCTS = {"Bmm": (0, 1), "Mm": (0, 0), "Addmm": (1, 0), "Baddbmm": (1, 1)}  # place of the first factor, batch dimensions


@dataclass(eq=False)
class Node:
    """A layer, a bare parameter, an input, or one operation between these.

    Attributes:
        function: autograd's, of its output; that of the last call of a layer that runs several times.
        path: of a layer or a bare parameter; empty for all else.
        layer: the layer or parameter itself, None for an operation and an input.
        reads: for each node that it reads: at which place, the node, and which of that node's outputs.
        channel: which dimension of its output counts channels, None where none does.
        links: where its output channels go: a node, and the table to its input's channel numbers; None keeps the numbers.
        frozen: why the channels of its output must stay; empty where they need not.
    """

    function: Any
    path: str = ""
    layer: nn.Module | nn.Parameter | None = None
    reads: list[tuple[int, Node, int]] = field(default_factory=list)
    channel: int | None = None
    links: list[tuple[Node, Table | None]] = field(default_factory=list)
    frozen: str = ""
    turn: int = -1  # in the run, of its first call

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of its output; None where autograd did not record it."""
        return tuple(self.layer.shape) if isinstance(self.layer, nn.Parameter) else shape_of(self.function)


Call = tuple[nn.Module, list[tuple[Any, int]]]  # a layer, and the autograd function and output number of each tensor it read


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> list[Node]:
    """Run the network on one sample and link its layers. `network` comes back in eval mode, with gradients on everywhere.

    Raises:
        Exception: whatever the network's forward raises.
    """
    network.eval().requires_grad_(True)
    kinds = (*LAYERS, *UNFOLLOWED)
    layers: dict[Any, str] = {layer: path for path, layer in network.named_modules() if isinstance(layer, kinds)}
    calls: dict[Any, Call] = {}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.requires_grad]
        if any(output is x for x in read):  # a layer that passes on what it gets is one in the record too
            output = output.clone()
        calls[tree_leaves(output)[0].grad_fn] = layer, [(edge.node, edge.output_nr) for edge in map(get_gradient_edge, read)]
        return output

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.enable_grad():
            given = [_followed(x) for x in one_sample(inputs)]
            outputs = tree_leaves(network(*given))
    finally:
        for handle in handles:
            handle.remove()
    ends = [x.grad_fn for x in outputs if isinstance(x, Tensor) and x.grad_fn is not None]
    in_layers = {id(weight) for layer in layers for weight in layer.parameters()}
    named: dict[Any, str] = {weight: name for name, weight in network.named_parameters() if id(weight) not in in_layers}
    nodes = _nodes(ends, calls, layers | {weight: name for weight, name in named.items() if channel_dim(weight) is not None})
    for x in given:
        if isinstance(x, Tensor) and (node := nodes.get(x.grad_fn)) is not None:
            node.channel, node.frozen, node.reads = (1 if x.ndim in (4, 5) else x.ndim - 1), "the input", []
    for function in ends:
        nodes[function].frozen = nodes[function].frozen or "the output"
    found = list(dict.fromkeys(nodes.values()))
    for node in sorted(found, key=lambda node: node.turn):
        _link(node)
    return found


def _followed(x: Any) -> Any:
    """An input whose channels autograd follows: of 2 dimensions and more, no number of a class or a timestep."""
    followed = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2
    return x.detach().requires_grad_(True).clone() if followed else x


def _nodes(ends: list[Any], calls: dict[Any, Call], paths: dict[Any, str]) -> dict[Any, Node]:
    """All nodes by their autograd functions, from the outputs to the inputs; a layer is one node however often it is called."""
    nodes: dict[Any, Node] = {}
    of_layer: dict[Any, Node] = {}

    def at(function: Any) -> Node:
        if function not in nodes:
            layer = calls[function][0] if function in calls else getattr(function, "variable", None)
            node = of_layer.get(layer) if layer is not None else None
            node = node or Node(function, paths.get(layer, ""), layer)
            turn = -1 if isinstance(layer, nn.Parameter) else function._sequence_nr()
            nodes[function], node.turn = node, turn if node.turn < 0 else min(node.turn, turn)
            if layer is not None:
                of_layer[layer] = node
        return nodes[function]

    waiting, opened = ends[::-1], set()
    while waiting:
        if (function := waiting.pop()) in opened:
            continue
        opened.add(function)
        node = at(function)
        read = calls[function][1] if function in calls else getattr(function, "next_functions", ())
        for place, (before, which) in enumerate(read):
            if before is not None and (not hasattr(before, "variable") or before.variable in paths):
                node.reads.append((place, at(before), which))
                waiting.append(before)
    return nodes


def _link(node: Node) -> None:
    """Note which dimension of the node's output counts its channels, and link it to what it reads."""
    name = name_of(node.function)
    if node.layer is not None:
        node.channel = _layer_channel(node)
        for _, other, which in node.reads:
            _join(node, other, which, None)
    elif product := next((at for kind, at in PRODUCTS.items() if name.startswith(kind)), None):
        _link_product(node, *product)
    else:
        _link_operation(node, name)


def _link_operation(node: Node, name: str) -> None:
    shape = node.shape
    for place, other, which in node.reads:
        if (dim := other.channel) is None:
            continue
        source = other.shape if isinstance(other.layer, nn.Parameter) else shape_of(other.function, which)
        goes = through(name, node.function, place, source, dim, shape) if source and shape else (dim, None)
        if goes is None or node.channel not in (None, goes[0]):
            continue  # summed, one for all, or another dimension: what still depends on it is found by running
        node.channel = goes[0]
        _join(node, other, which, goes[1])


def _link_product(node: Node, first: int, batch: int) -> None:
    """Matrix product (N, K) x (K, M): channels go on along N or M, or are summed along K and end."""
    along = {place - first: other.channel for place, other, _ in node.reads}
    summed = along.get(0) == batch + 1 and along.get(1) == batch
    for place, other, which in node.reads:
        factor = place - first
        if summed or (node.channel is None and factor >= 0 and along[factor] == batch + factor):
            node.channel = None if summed else batch + factor
            _join(node, other, which, None)


def _layer_channel(node: Node) -> int | None:
    layer, shape = node.layer, node.shape
    if isinstance(layer, nn.Parameter):
        return channel_dim(layer)
    if isinstance(layer, nn.LayerNorm) and shape:  # one of channels first, which permutes within, gives them back first
        dims = [other.channel for _, other, _ in node.reads if other.channel is not None]
        return dims[0] if dims and dims[0] < len(shape) and shape[dims[0]] == layer.normalized_shape[-1] else len(shape) - 1
    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding, *UNFOLLOWED)):
        return len(shape) - 1 if shape else None
    return 1


def _join(node: Node, other: Node, which: int, table: Table | None) -> None:
    """`table`: from channels of `other`'s output to channels of `node`'s input."""
    if other.channel is not None and (part := split_table(other.function, which, other.channel)) is not None:
        table = chain(part, table)
    other.links.append((node, table))
