"""What a network costs: multiply-accumulates and parameters, counted by torch itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def one_sample(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first sample of every input: (B, ...) to (1, ...). Inputs without dimensions stay."""
    return tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Every module in eval mode and without gradients, and as it was afterwards."""
    modes = {module: module.training for module in network.modules()}
    learned = [weight for weight in network.parameters() if weight.requires_grad]
    network.eval().requires_grad_(False)  # torch's counter fails on a parameter that is a module's input
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for weight in learned:
            weight.requires_grad_(True)


def macs(network: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Multiply-accumulates of one forward of ONE sample, whatever the batch of `example_inputs` is.

    torch's counter gives floating-point operations, two to a multiply-accumulate, of convolutions, matrix products and
    attention. Depthwise convolutions are counted by their groups. Norms, activations and resizing are not counted, as in
    the papers.
    """
    return sum(macs_by_module(network, example_inputs).values())


def macs_by_module(network: nn.Module, example_inputs: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-accumulates of one sample by the path of the innermost module that spends them ("" is the network itself)."""
    counter = FlopCounterMode(display=False)
    with evaluating(network), counter:  # a batch norm in training refuses one sample of 1x1
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
    """Numbers that are learned, each counted once however many modules share it."""
    return sum(weight.numel() for weight in network.parameters())
