"""A network's linear layers in 8 bits on a GPU, by torchao: weights a scale each output channel, inputs a scale each row.

Convolutions stay as they are, which torchao does not compute in 8 bits. Its kernels are made for `torch.compile`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from gendistill.samplers.quantization.int8 import layers_in_8_bits


def require_torchao() -> None:
    """Raise ValueError where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("quantization int8: needs torchao on a GPU; pip install 'gendistill[torchao]', or take int8-weights")


def to_int8_by_torchao(network: nn.Module) -> None:
    """Let a network's linear layers compute in 8 bits; for sampling alone, on any device that it moves to as a whole.

    Raises:
        ValueError: torchao is not installed.
    """
    require_torchao()
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    linear = {layer for _, layer in layers_in_8_bits(network) if isinstance(layer, nn.Linear)}
    quantize_(network, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda layer, path: layer in linear)


def is_by_torchao(network: nn.Module) -> bool:
    """Whether `to_int8_by_torchao` was done to a network."""
    return any(type(weight).__module__.startswith("torchao.") for weight in network.parameters())


if torch.ops.aten._int_mm not in flop_registry:

    @register_flop_formula(torch.ops.aten._int_mm)
    def _of_product(a: Any, b: Any, *given: Any, out_shape: Any = None, **more: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])
