"""How channel numbers travel through a network: torch-pruning's dependency graph, with exact maps at every operation.

`torch_pruning.DependencyGraph` (Fang et al. 2023, "DepGraph") runs the network once and links layers by autograd's record of
the run. What it knows of shapes it guesses from neighbouring layers; here each link gets the true map of channel numbers,
from the shapes that autograd recorded: through views, concatenation, splits, slices, pixel shuffle, broadcasting, reductions.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch_pruning.dependency import Node

from gendistill.networks.counting import one_sample
from gendistill.networks.pruning.operations import Table, chain, name_of, shape_of, split_table, through

MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.PReLU,
    nn.Embedding,
)
UNFOLLOWED = (nn.MultiheadAttention, nn.RNNBase)  # layers whose channels are not ours to remove
PRODUCTS = {"Bmm": (0, 1), "Mm": (0, 0), "Addmm": (1, 0), "Baddbmm": (1, 1)}  # place of the first factor, batch dimensions


@dataclass
class Trace:
    """The nodes of one run and the links between them.

    `links[node]` lists (node's side, other node, other's side, table); a side is "in", "out" or, where both are the same
    channels, "both". A table of None keeps the numbers. `size(node, side)` is None for operations.
    """

    graph: torch_pruning.DependencyGraph
    paths: dict[Node, str]
    links: dict[Node, list[tuple[str, Node, str, Table | None]]] = field(default_factory=lambda: defaultdict(list))
    frozen: dict[tuple[Node, str], str] = field(default_factory=dict)  # sides whose channels must stay: why

    def sides(self, node: Node) -> tuple[str, str]:
        """The names of a node's input and output channels."""
        pruner = self.graph.get_pruner_of_module(node.module)
        return ("both", "both") if pruner.prune_in_channels == pruner.prune_out_channels else ("in", "out")

    def size(self, node: Node, side: str) -> int | None:
        """Channels on a side of a layer."""
        if isinstance(node.module, UNFOLLOWED) or node not in self.paths:
            return None
        return self.graph.get_in_channels(node) if side == "in" else self.graph.get_out_channels(node)


class _Doors(nn.Module):
    """Identity layers before the network, so that its inputs are layers of known channels in the graph, as all others are."""

    def __init__(self, network: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.doors = nn.ModuleDict()
        for k, x in enumerate(inputs):
            if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2:
                self.doors[str(k)] = self._door(x)

    @staticmethod
    def _door(x: Tensor) -> nn.Module:
        door: nn.Module
        if x.ndim in (4, 5):
            kind = nn.Conv2d if x.ndim == 4 else nn.Conv3d
            door = kind(x.shape[1], x.shape[1], 1, bias=False, device=x.device, dtype=x.dtype)
        else:
            door = nn.Linear(x.shape[-1], x.shape[-1], bias=False, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            weight: Any = door.weight
            weight.copy_(torch.eye(len(weight)).reshape(weight.shape))
        return door

    def forward(self, *inputs: Any) -> Any:
        return self.network(*(self.doors[str(k)](x) if str(k) in self.doors else x for k, x in enumerate(inputs)))


def channel_dim(parameter: nn.Parameter) -> int | None:
    """Which dimension of a parameter that belongs to no layer counts channels: None where that cannot be told.

    (C,), (C, 1, 1), (1, C, 1, 1) and constants (1, C, H, W), (C, H, H), (H, H, C): C. Tokens (1, N, C): C.
    """
    large = [k for k, size in enumerate(parameter.shape) if size > 1]
    if parameter.ndim == 4 and parameter.shape[0] == 1 and parameter.shape[1] > 1:
        return 1
    if parameter.ndim == 3 and parameter.shape[0] == 1 and parameter.shape[2] > 1:
        return 2
    if parameter.ndim == 3 and parameter.shape[0] == parameter.shape[1]:
        return 2
    if parameter.ndim == 3 and parameter.shape[1] == parameter.shape[2]:
        return 0
    return large[0] if len(large) == 1 else None


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Run the network on one sample and link its layers. `network` comes back in eval mode, with gradients on everywhere.

    Raises:
        Exception: whatever the network's forward raises.
    """
    inputs = one_sample(inputs)
    wrapped = _Doors(network, inputs)
    wrapped.eval().requires_grad_(True)
    layers = [layer for layer in network.modules() if isinstance(layer, (*MODULES, *UNFOLLOWED))]
    known = {id(weight) for layer in layers for weight in layer.parameters()}
    bare = [weight for weight in network.parameters() if id(weight) not in known]
    dims = [(weight, dim) for weight in bare if (dim := channel_dim(weight)) is not None]
    spans = _Spans(wrapped)
    ends: list[Any] = []

    def run(net: nn.Module, given: tuple[Tensor, ...]) -> Any:
        output = net(*given)
        ends.extend(x.grad_fn for x in tree_leaves(output) if isinstance(x, Tensor))
        return output

    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings(), spans:
        warnings.simplefilter("ignore")
        graph.build_dependency(wrapped, inputs, forward_fn=run, unwrapped_parameters=list(dims), verbose=False)
    names: dict[Any, str] = {layer: name for name, layer in wrapped.named_modules() if isinstance(layer, (*MODULES, nn.Module))}
    names |= {weight: name for name, weight in wrapped.named_parameters() if any(weight is one for one, _ in dims)}
    nodes = list(graph.module2node.values())
    found = Trace(graph, {node: names[node.module] for node in nodes if node.module in names})
    _Linker(found, spans.inner(), {id(weight): dim for weight, dim in dims}).link(nodes)
    for node in nodes:
        if node.grad_fn in ends:
            found.frozen[node, found.sides(node)[1]] = "the output"
    return found


class _Spans:
    """Which autograd nodes lie inside a layer, between its inputs and its output."""

    def __init__(self, network: nn.Module) -> None:
        kinds = (*MODULES, *UNFOLLOWED)
        self.layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
        self.calls: list[tuple[Any, list[Any]]] = []
        self.kept: list[Any] = []  # autograd nodes are compared by identity and must not be freed

    def __enter__(self) -> _Spans:
        self.handles = [layer.register_forward_hook(self._note) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        self.calls.append((output.grad_fn, [x.grad_fn for x in inputs if isinstance(x, Tensor)]))

    def inner(self) -> set[Any]:
        found = set()
        for end, starts in self.calls:
            stack = [end]
            while stack:
                for before, _ in getattr(stack.pop(), "next_functions", ()):
                    if before is not None and before not in starts and before not in found:
                        found.add(before)
                        stack.append(before)
        return found


class _Linker:
    """Goes through the nodes from inputs to output, noting for each which dimension counts its channels."""

    def __init__(self, trace: Trace, inner: set[Any], dims: dict[int, int]) -> None:
        self.trace, self.inner, self.dims = trace, inner, dims
        self.channel: dict[Node, int | None] = {}

    def link(self, nodes: list[Node]) -> None:
        for node in _in_order(nodes):
            self._node(node)

    def _node(self, node: Node) -> None:
        before = self._before(node)
        name = name_of(node.grad_fn)
        self.channel[node] = None
        if node in self.trace.paths:
            self.channel[node] = self._layer_channel(node, before)
        elif node.grad_fn in self.inner:
            self.channel[node] = next((self.channel.get(other) for _, other, _ in before), None)
        elif product := next((at for kind, at in PRODUCTS.items() if name.startswith(kind)), None):
            self._product(node, before, *product)
            return
        else:
            self._operation(node, name, before)
            return
        for _, other, which in before:
            self._join(node, other, which, None)

    def _operation(self, node: Node, name: str, before: list[tuple[int, Node, int]]) -> None:
        shape = shape_of(node.grad_fn)
        for position, other, which in before:
            if (dim := self.channel.get(other)) is None:
                continue
            source = self._parameter_shape(other) or shape_of(other.grad_fn, which)
            if source is None or shape is None:
                self.channel[node] = dim
                self._join(node, other, which, None)
                continue
            goes = through(name, node.grad_fn, position, source, dim, shape)
            if goes is None or self.channel[node] not in (None, goes[0]):
                continue  # summed, one for all, or another dimension: what still depends on it is found by running
            self.channel[node] = goes[0]
            self._join(node, other, which, goes[1])

    def _product(self, node: Node, before: list[tuple[int, Node, int]], first: int, batch: int) -> None:
        """Matrix product (N, K) x (K, M): channels go on along N or M, or are summed along K and end."""
        along = {position - first: self.channel.get(other) for position, other, _ in before}
        summed = along.get(0) == batch + 1 and along.get(1) == batch
        for position, other, which in before:
            factor = position - first
            if summed or (self.channel[node] is None and factor >= 0 and along[factor] == batch + factor):
                self.channel[node] = None if summed else batch + factor
                self._join(node, other, which, None)

    def _layer_channel(self, node: Node, before: list[tuple[int, Node, int]]) -> int | None:
        layer = node.module
        if isinstance(layer, nn.Parameter):
            return self.dims[id(layer)]
        shape = shape_of(node.grad_fn)
        if isinstance(layer, nn.LayerNorm) and shape:  # one of channels first, which permutes within, gives them back first
            dims = [dim for _, other, _ in before if (dim := self.channel.get(other)) is not None]
            return dims[0] if dims and dims[0] < len(shape) and shape[dims[0]] == layer.normalized_shape[-1] else len(shape) - 1
        if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding, *UNFOLLOWED)):
            return len(shape) - 1 if shape else None
        return 1

    def _before(self, node: Node) -> list[tuple[int, Node, int]]:
        """The nodes that a node reads: at which place, and which output of theirs."""
        known = {other.grad_fn: other for other in node.inputs}
        reads = enumerate(getattr(node.grad_fn, "next_functions", ()))
        found = [(position, known[fn], which) for position, (fn, which) in reads if fn in known]
        return found + [(0, other, 0) for other in node.inputs if all(other is not one for _, one, _ in found)]

    def _parameter_shape(self, node: Node) -> tuple[int, ...] | None:
        return tuple(node.module.shape) if isinstance(node.module, nn.Parameter) else None

    def _join(self, node: Node, other: Node, which: int, table: Table | None) -> None:
        """`table`: from channels of `other`'s output to channels of `node`'s input."""
        if (dim := self.channel.get(other)) is not None and (part := split_table(other.grad_fn, which, dim)) is not None:
            table = chain(part, table)
        into, out = self.trace.sides(node)[0], self.trace.sides(other)[1]
        back: Table | None = None
        if table is not None:
            back = [[] for _ in range(1 + max((k for row in table for k in row), default=-1))]
            for k, row in enumerate(table):
                for to in row:
                    back[to].append(k)
        self.trace.links[other].append((out, node, into, table))
        self.trace.links[node].append((into, other, out, back))


def _in_order(nodes: list[Node]) -> Iterator[Node]:
    """Inputs before what reads them."""
    done: set[Node] = set()
    for last in nodes:
        stack = [(last, False)]
        opened: set[Node] = set()
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done.add(node)
                yield node
            elif node not in opened:
                opened.add(node)
                stack.append((node, True))
                stack.extend((other, False) for other in node.inputs if other not in done)
