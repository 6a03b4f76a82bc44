"""Quantisation-aware training with fake-quantised 8-bit layers and a straight-through gradient (Jacob et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.samplers.quantization.int8 import (
    LEVELS,
    MAX_LEVEL,
    input_ranges,
    layers_computed_in_8_bits,
    weight_scales,
)


class FakeInt8Linear(nn.Linear):
    """A linear layer with the values of `Int8Layer`; the gradient passes straight through the rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_inputs(x), rounded_weight(self.weight).to(x.dtype), self.bias)


class FakeInt8Conv2d(nn.Conv2d):
    """A convolution with the values of `Int8Layer`, as `FakeInt8Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(rounded_inputs(x), rounded_weight(self.weight).to(x.dtype), self.bias)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight (O, ...), quantised to 8 bits and dequantised, in float32."""
    scales = weight_scales(weight)
    return _Rounded.apply(weight.float(), scales, torch.zeros_like(scales), -MAX_LEVEL, MAX_LEVEL)


def rounded_inputs(x: Tensor) -> Tensor:
    """The input of a layer (B, ...), quantised to 8 bits by the range of each sample and dequantised."""
    return _Rounded.apply(x.float(), *input_ranges(x), 0, LEVELS).to(x.dtype)


class _Rounded(torch.autograd.Function):
    """Rounding to the nearest level of each row's scale; the gradient is the identity, since no value exceeds the levels."""

    @staticmethod
    def forward(context: Any, x: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int) -> Tensor:
        scales, zeros = (row_values.reshape(-1, *[1] * (x.ndim - 1)) for row_values in (scales, zeros))
        levels = x * (1 / scales)
        return levels.add_(zeros).round_().clamp_(low, high).sub_(zeros).mul_(scales)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None, None


def compute_as_int8(network: Any) -> None:
    """Replace the layers that will compute in 8 bits by fake-quantised ones, of the same names and parameters."""
    fake_layers = {layer: _fake(layer) for _, layer in layers_computed_in_8_bits(network)}
    for path, layer in list(network.named_modules(remove_duplicate=False)):  # diffusers registers some layers under two names
        if layer in fake_layers:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, fake_layers[layer])


def _fake(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The fake-quantised layer, which shares the parameters of the layer (as `torch.ao.nn.qat` swaps modules)."""
    fake: nn.Linear | nn.Conv2d
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        fake = FakeInt8Linear(layer.in_features, layer.out_features, bias, device="meta")
    else:
        sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        fake = FakeInt8Conv2d(**{name: getattr(layer, name) for name in sizes}, bias=bias, device="meta")
    fake.weight, fake.bias = layer.weight, layer.bias
    return fake.train(layer.training)
