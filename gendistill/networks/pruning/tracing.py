"""The channel dependency graph of a network, built from the autograd graph of one forward pass.

Nodes are layers, bare parameters, inputs and the operations between them (Fang et al. 2023, "DepGraph"), one for each
dimension of an output that holds channels. Each edge has the exact map of channel indices through views, concatenation,
splits, slices, pixel shuffle, broadcasting, reductions, and convolutions and products with bare weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from gendistill.networks.counting import one_sample
from gendistill.networks.pruning.layers import LAYERS, UNFOLLOWED, channel_dims, sides
from gendistill.networks.pruning.operations import SUMMED, Table, channel_map, compose, name_of, shape_of, split_table


@dataclass(eq=False)
class Operation:
    """A layer, a bare parameter, an input, or an operation between these.

    Attributes:
        function: the autograd node of the output; for a layer with several calls, that of the last call.
        path: of a layer or a bare parameter; empty for others.
        layer: the layer or parameter itself; None for an operation and an input.
        reads: for each input: its position, the operation that computed it, and the index of that operation's output.
        nodes: by the dimension of the output that holds channels; `SUMMED` for channels that are summed over.
        frozen: why the output channels cannot be pruned; empty where they can.
        turn: the position of the first call in the order of execution.
    """

    function: Any
    path: str = ""
    layer: nn.Module | nn.Parameter | None = None
    reads: list[tuple[int, Operation, int]] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    frozen: str = ""
    turn: int = -1

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the output; None where autograd did not record it."""
        return tuple(self.layer.shape) if isinstance(self.layer, nn.Parameter) else shape_of(self.function)

    def node(self, dim: int) -> Node:
        return self.nodes.setdefault(dim, Node(self, dim))


@dataclass(eq=False)
class Node:
    """The channels in one dimension of an operation's output.

    Attributes:
        links: the edges to other nodes, each with the table from output channels to that node's input channels; None is the
            identity.
    """

    operation: Operation
    channel: int
    links: list[tuple[Node, Table | None]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.operation.path

    @property
    def layer(self) -> nn.Module | nn.Parameter | None:
        return self.operation.layer

    @property
    def frozen(self) -> str:
        return "" if self.channel == SUMMED else self.operation.frozen

    @property
    def sides(self) -> tuple[str, str]:
        """The names of the input side and the output side: see `LayerSide`."""
        axis = str(self.channel)
        return (axis, axis) if isinstance(self.layer, nn.Parameter) else sides(self.layer)

    @property
    def width(self) -> int:
        """The number of channels; 0 where they are summed over, or where autograd did not record the shape."""
        shape = self.operation.shape
        return shape[self.channel] if shape and 0 <= self.channel < len(shape) else 0


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
    operations = _operations(ends, calls, layers | {weight: name for weight, name in named.items() if channel_dims(weight)})
    for x in arguments:
        if isinstance(x, Tensor) and (operation := operations.get(x.grad_fn)) is not None:
            operation.frozen, operation.reads = "the input", []
            operation.node(1 if x.ndim in (4, 5) else x.ndim - 1)
    for function in ends:
        operations[function].frozen = operations[function].frozen or "the output"
    unique = list(dict.fromkeys(operations.values()))
    for operation in sorted(unique, key=lambda operation: operation.turn):
        _link(operation)
    return [node for operation in unique for node in operation.nodes.values()]


def _tracked(x: Any) -> Any:
    """An input whose channels autograd tracks: a float tensor of at least 2 dimensions, not class numbers or timesteps."""
    tracked = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2
    return x.detach().requires_grad_(True).clone() if tracked else x


def _operations(ends: list[Any], calls: dict[Any, Call], paths: dict[Any, str]) -> dict[Any, Operation]:
    """All operations by autograd function, from the outputs to the inputs. A layer is one of them, also with several calls."""
    operations: dict[Any, Operation] = {}
    of_layers: dict[Any, Operation] = {}

    def at(function: Any) -> Operation:
        if function not in operations:
            layer = calls[function][0] if function in calls else getattr(function, "variable", None)
            operation = of_layers.get(layer) if layer is not None else None
            operation = operation or Operation(function, paths.get(layer, ""), layer)
            turn = -1 if isinstance(layer, nn.Parameter) else function._sequence_nr()
            operation.turn = turn if operation.turn < 0 else min(operation.turn, turn)
            operations[function] = operation
            if layer is not None:
                of_layers[layer] = operation
        return operations[function]

    stack, visited = ends[::-1], set()
    while stack:
        if (function := stack.pop()) in visited:
            continue
        visited.add(function)
        operation = at(function)
        sources = calls[function][1] if function in calls else getattr(function, "next_functions", ())
        for position, (source, index) in enumerate(sources):
            if source is not None and (not hasattr(source, "variable") or source.variable in paths):
                operation.reads.append((position, at(source), index))
                stack.append(source)
    return operations


def _link(operation: Operation) -> None:
    """Determine the channel dimensions of the output and add the edges from its inputs."""
    if isinstance(operation.layer, nn.Parameter):
        for dim in channel_dims(operation.layer):
            operation.node(dim)
    elif operation.layer is not None:
        _link_layer(operation)
    else:
        _link_operation(operation)


def _link_layer(operation: Operation) -> None:
    sources = [(source, index) for _, from_, index in operation.reads for source in _channels_of(from_)]
    if (dim := _layer_channel(operation, [source.channel for source, _ in sources])) is None:
        return
    node = operation.node(dim)
    matching = [(source, index) for source, index in sources if source.channel == dim]
    for source, index in matching or sources:
        _join(node, source, index, None)


def _link_operation(operation: Operation) -> None:
    name, target = name_of(operation.function), operation.shape
    for position, from_, index in operation.reads:
        for source in _channels_of(from_):
            shape = from_.shape if isinstance(from_.layer, nn.Parameter) else shape_of(from_.function, index)
            mapped: tuple[int, Table | None] | None = source.channel, None
            if shape and target:
                mapped = channel_map(name, operation.function, position, shape, source.channel, target)
            if mapped is not None:  # otherwise reduced or broadcast; remaining dependencies are found by `trials`
                _join(operation.node(mapped[0]), source, index, mapped[1])


def _channels_of(operation: Operation) -> Iterator[Node]:
    return (node for dim, node in operation.nodes.items() if dim != SUMMED)


def _layer_channel(operation: Operation, dims: list[int]) -> int | None:
    """The channel dimension of a layer's output, where the inputs have channels in `dims`."""
    layer, shape = operation.layer, operation.shape
    if isinstance(layer, nn.LayerNorm) and shape:  # a channels-first variant permutes inside and returns channels first
        width = layer.normalized_shape[-1]
        return next((dim for dim in dims if dim < len(shape) and shape[dim] == width), len(shape) - 1)
    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding, *UNFOLLOWED)):
        return len(shape) - 1 if shape else None
    return 1


def _join(node: Node, source: Node, index: int, table: Table | None) -> None:
    """Add an edge; `table` maps channels of output `index` of `source` to channels of `node`'s input."""
    if (part := split_table(source.operation.function, index, source.channel)) is not None:
        table = compose(part, table)
    source.links.append((node, table))
