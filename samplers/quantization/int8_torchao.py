"""Linear layers in 8 bits on a GPU by torchao, with one scale per output channel of a weight and one per row of an input.

Convolutions are unchanged, as torchao does not compute them in 8 bits. Its kernels are made for `torch.compile`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from gendistill.samplers.quantization.int8 import layers_computed_in_8_bits


def require_torchao() -> None:
    """Raise ValueError if torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("quantization int8: needs torchao on a GPU; pip install 'gendistill[torchao]', or use int8-weights")


def to_int8_by_torchao(network: nn.Module) -> None:
    """Let a network's linear layers compute in 8 bits; for inference only, on any one device.

    Raises:
        ValueError: torchao is not installed.
    """
    require_torchao()
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    linear = {layer for _, layer in layers_computed_in_8_bits(network) if isinstance(layer, nn.Linear)}
    quantize_(network, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda layer, path: layer in linear)


def is_by_torchao(network: nn.Module) -> bool:
    """Whether `to_int8_by_torchao` was applied to a network."""
    return any(type(weight).__module__.startswith("torchao.") for weight in network.parameters())


if torch.ops.aten._int_mm not in flop_registry:

    @register_flop_formula(torch.ops.aten._int_mm)
    def _product_flops(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])
