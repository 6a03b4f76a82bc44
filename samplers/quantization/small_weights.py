"""Weights in 8 or 4 bits on any device, dequantized while their layer computes in its usual precision.

`int8-weights` has one scale per output channel; `nf4-weights` has 16 levels, the quantiles of a normal distribution, times
the largest absolute value of each 64 weights (Dettmers et al. 2023, "QLoRA", section 3 and appendix E). Both also apply to
convolutions, which are two thirds of Stable Diffusion 1.5's network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gendistill.samplers.quantization.int8 import MAX_LEVEL, layers_in_8_bits, weight_scales

BLOCK = 64  # weights per scale in 4 bits
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Int8Weight(nn.Module):
    """A weight (O, ...) as levels in [-127, 127], int8 (O, ...), and a scale (O,) for each output channel."""

    def forward(self, levels: Tensor, scales: Tensor) -> Tensor:
        return levels * scales.reshape(-1, *[1] * (levels.ndim - 1))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = weight_scales(weight)
        rows = scales.reshape(-1, *[1] * (weight.ndim - 1))
        levels = (weight.detach().float() / rows).round().clamp(-MAX_LEVEL, MAX_LEVEL).to(torch.int8)
        return levels, scales.to(weight.dtype)


class NF4Weight(nn.Module):
    """A weight of any shape, N values in B = ceil(N / `BLOCK`) blocks: the numbers of their levels, two per byte, uint8
    (B * BLOCK / 2,), and the largest absolute value of each block (B,)."""

    pairs: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.count = weight.shape, weight.numel()
        levels = torch.tensor(NF4, dtype=weight.dtype, device=weight.device)
        self.register_buffer("pairs", torch.cartesian_prod(levels, levels), persistent=False)  # (256, 2), by byte

    def forward(self, packed: Tensor, scales: Tensor) -> Tensor:
        levels = F.embedding(packed.int(), self.pairs.to(scales.dtype)).view(-1, BLOCK)
        return levels.mul_(scales.unsqueeze(1)).view(-1)[: self.count].view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        blocks = F.pad(weight.detach().float().flatten(), (0, -self.count % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1).clamp(min=1e-12)
        levels = torch.tensor(NF4, device=weight.device)
        numbers = torch.bucketize(blocks / scales.unsqueeze(1), (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
        return numbers[:, 0] * 16 + numbers[:, 1], scales.to(weight.dtype)


KINDS = {"int8-weights": lambda weight: Int8Weight(), "nf4-weights": NF4Weight}


def quantize_weights(network: nn.Module, kind: str) -> None:
    """Quantize the weights of a network's layers to `kind`, one of `KINDS`; they cannot be trained, adapters on them can."""
    for _, layer in layers_in_8_bits(network):
        parametrize.register_parametrization(layer.requires_grad_(False), "weight", KINDS[kind](layer.weight))


def weight_quantization(network: nn.Module) -> str | None:
    """The quantization of a network's weights, one of `KINDS`, or None."""
    weight = next(_quantized_weights(network), None)
    return "int8-weights" if isinstance(weight, Int8Weight) else None if weight is None else "nf4-weights"


def _quantized_weights(network: nn.Module) -> Iterator[Any]:
    return (module for module in network.modules() if isinstance(module, Int8Weight | NF4Weight))
