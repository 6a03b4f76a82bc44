"""Quantisation-aware training: layers that compute as they will in 8 bits, and learn as if they did not (Jacob et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.samplers.quantization.int8 import LEVELS, MOST, input_ranges, layers_in_8_bits, weight_scales


class FakeInt8Linear(nn.Linear):
    """Numbers are those of `Int8Layer`; the gradient passes the rounding as if it were not there."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_inputs(x), rounded_weight(self.weight).to(x.dtype), self.bias)


class FakeInt8Conv2d(nn.Conv2d):
    """See `FakeInt8Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(rounded_inputs(x), rounded_weight(self.weight).to(x.dtype), self.bias)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight (O, ...) as 8 bits hold it, in float32."""
    scales = weight_scales(weight)
    return _Rounded.apply(weight.float(), scales, torch.zeros_like(scales), -MOST, MOST)


def rounded_inputs(x: Tensor) -> Tensor:
    """What comes into a layer (B, ...) as 8 bits hold it, by each image's own range."""
    return _Rounded.apply(x.float(), *input_ranges(x), 0, LEVELS).to(x.dtype)


class _Rounded(torch.autograd.Function):
    """To the nearest level of each row's scale; the gradient is that of doing nothing, since no value is beyond the levels."""

    @staticmethod
    def forward(context: Any, x: Tensor, scales: Tensor, zeros: Tensor, low: int, high: int) -> Tensor:
        scales, zeros = (of.reshape(-1, *[1] * (x.ndim - 1)) for of in (scales, zeros))
        levels = x * (1 / scales)
        return levels.add_(zeros).round_().clamp_(low, high).sub_(zeros).mul_(scales)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None, None


def compute_as_int8(network: Any) -> None:
    """Let the layers that will compute in 8 bits do as if they did; their names and weights stay what they are."""
    made = {layer: _fake(layer) for _, layer in layers_in_8_bits(network)}
    for path, layer in list(network.named_modules(remove_duplicate=False)):  # diffusers has layers of two names
        if layer in made:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, made[layer])


def _fake(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer's fake-quantised form, which learns the layer's own parameters (as `torch.ao.nn.qat` swaps modules)."""
    made: nn.Linear | nn.Conv2d
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        made = FakeInt8Linear(layer.in_features, layer.out_features, bias, device="meta")
    else:
        sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        made = FakeInt8Conv2d(**{name: getattr(layer, name) for name in sizes}, bias=bias, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)
