"""The cost of a network: multiply-accumulates, counted by torch's FLOP counter, and parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def one_sample(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first sample of every input: (B, ...) to (1, ...). Inputs without dimensions are unchanged."""
    return tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode, without gradients, while the context is open; then as before."""
    modes = {module: module.training for module in network.modules()}
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    network.eval().requires_grad_(False)  # FlopCounterMode fails where a parameter is a module's input
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for weight in trainable:
            weight.requires_grad_(True)


def macs(network: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of a forward pass of ONE sample; the batch size of `example_inputs` has no influence.

    torch's counter reports floating-point operations (two per multiply-accumulate) of convolutions, matrix products and
    attention; it respects the groups of a convolution. As in the papers, normalization, activations and resizing are not
    counted.
    """
    return sum(macs_by_module(network, example_inputs).values())


def macs_by_module(network: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-accumulates of one sample for each innermost module that executes them, by path ("" is the network itself)."""
    counter = FlopCounterMode(display=False)
    with evaluating(network), counter:  # in train mode a batch norm rejects one sample of 1x1 pixels
        network(*one_sample(example_inputs))
    total = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    total.pop(root := type(network).__name__, None)  # the same numbers as "Global"
    inner: dict[str, int] = defaultdict(int)
    for name, count in total.items():
        path = "" if name == "Global" else name.removeprefix(root + ".")
        parent = path
        inner[path] += count
        while parent:
            parent = parent.rpartition(".")[0]
            if not parent or f"{root}.{parent}" in total:
                inner[parent] -= count
                break
    return {path: count for path, count in inner.items() if count}


def parameters(network: nn.Module) -> int:
    """The number of parameters; a parameter that modules share counts once."""
    return sum(weight.numel() for weight in network.parameters())
