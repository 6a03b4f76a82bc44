"""The cost of a network: multiply-accumulates, counted by torch's FLOP counter, and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def one_sample(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first sample of every input: (B, ...) to (1, ...). Inputs without dimensions are unchanged."""
    return tuple(x[:1] if isinstance(x, Tensor) and x.ndim else x for x in inputs)


def called(network: nn.Module, inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
    """The result of a call for one sample, with the arguments by position, of any batch size; or by name, of one sample."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(*one_sample(inputs))


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


@contextmanager
def _countable(network: nn.Module) -> Iterator[None]:
    """Attention and recurrent layers as matrix products, as torch's counter skips their fused kernels."""
    backends: Any = torch.backends
    fused, onednn, cudnn = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        backends.mkldnn.enabled = backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fused)
        backends.mkldnn.enabled, backends.cudnn.enabled = onednn, cudnn


def macs(network: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any]) -> int:
    """Multiply-accumulates of a forward pass of ONE sample; the batch size of `example_inputs` has no influence.

    torch's counter reports floating-point operations (two per multiply-accumulate) of convolutions, matrix products and
    attention, also where a forward calls them on bare parameters; it respects the groups of a convolution. As in the papers,
    normalization, activations and resizing are not counted.
    """
    return sum(macs_by_module(network, example_inputs).values())


def macs_by_module(network: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, int]:
    """Multiply-accumulates of one sample for each innermost module that executes them, by path ("" is the network itself).

    All calls of a module that runs several times are counted at its path.

    Args:
        example_inputs: arguments of its `forward`, as for `called`.
    """
    paths = {module: path for path, module in network.named_modules()}
    running, inner = list[str](), dict[str, int]()
    counted = 0

    def to_innermost() -> None:
        """Attribute what was counted since the last call to the module that is running."""
        nonlocal counted
        total = counter.get_total_flops() // 2
        if running:
            inner[running[-1]] = inner.get(running[-1], 0) + total - counted
        counted = total

    def enter(module: nn.Module, inputs: Any) -> None:
        to_innermost()
        running.append(paths[module])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        to_innermost()
        running.pop()

    handles = [module.register_forward_pre_hook(enter) for module in paths]
    handles += [module.register_forward_hook(leave) for module in paths]
    counter = FlopCounterMode(display=False)
    try:
        with evaluating(network), _countable(network), counter:  # in train mode a batch norm rejects one sample of 1x1 pixels
            called(network, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: count for path, count in inner.items() if count}


def parameters(network: nn.Module) -> int:
    """The number of parameters; a parameter that modules share counts once."""
    return sum(weight.numel() for weight in network.parameters())
