"""A network in 8 bits on a CPU: weights a scale each output channel, what flows between layers a range each image.

Weights are symmetric in [-127, 127]; what comes into a layer is read anew for each image, from its least to its largest
value, as 0 to 255 (Jacob et al. 2018, section 2.1). Products are summed in integers by oneDNN, all else stays as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

KEPT = {"conv_in", "conv_out", "time_embedding", "time_emb_proj", "class_embedding", "add_embedding", "lora_A", "lora_B"}
LEVELS, MOST = 255, 127


def layers_in_8_bits(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Those that do the work, by path; what reads the time, and the first and the last layer, stay as they are."""
    for path, layer in network.named_modules():
        plain = isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if (plain or isinstance(layer, nn.Linear)) and not KEPT & set(path.split(".")):
            yield path, layer


def weight_scales(weight: Tensor) -> Tensor:
    """(O,) what a step of 8 bits is of each output channel of a weight (O, ...)."""
    return (weight.detach().float().abs().flatten(1).amax(1) / MOST).clamp(min=1e-12)


def input_ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (B,) of what comes into a layer, (B, ...), for each image."""
    of = x.detach().float().flatten(1)
    low, high = of.amin(1).clamp(max=0), of.amax(1).clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=1e-12)
    return scale, (-low / scale).round()


def to_int8(network: nn.Module) -> None:
    """Replace a network's layers by those that compute in 8 bits; for sampling alone, on a CPU.

    Raises:
        ValueError: this torch cannot.
    """
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        raise ValueError("quantization int8: this torch was built without oneDNN; expects one for x86 processors")
    for path, layer in list(layers_in_8_bits(network)):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Int8Layer(layer))


def is_int8(network: nn.Module) -> bool:
    """Whether `to_int8` was done to a network."""
    return any(isinstance(layer, Int8Layer) for layer in network.modules())


class Int8Layer(nn.Module):
    """A linear layer or a convolution in 8 bits; its weights are told apart by a digest, since they are packed."""

    digest: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight, scales = layer.weight.detach().float(), weight_scales(layer.weight)
        rounded = (weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).round().clamp(-MOST, MOST).to(torch.int8)
        self._of: Any = None
        self._ones: tuple[torch.Size, Tensor] | None = None
        if isinstance(layer, nn.Conv2d):
            self._of = [list(of) for of in (layer.stride, layer.padding, layer.dilation)] + [layer.groups]
            self._packed = torch.ops.onednn.qconv_prepack(rounded, scales, 1.0, 0, *self._of)
        else:
            self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        digest = hashlib.sha256(rounded.numpy().data).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self._zeros = torch.zeros(len(scales), dtype=torch.int)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) of (B, ...), in its dtype; each image by its own range, so that it does not depend on its batch."""
        scales, zeros = input_ranges(x)
        rows = [-1, *[1] * (x.ndim - 1)]
        levels = x * (1 / scales).reshape(rows)
        levels = levels.add_(zeros.reshape(rows)).round_().clamp_(0, LEVELS).to(torch.uint8)
        if len(x) == 1:
            return self._product(levels, scales.item(), int(zeros.item()), self.bias).to(x.dtype)
        # the sum of (level - zero) * weight is that of level * weight less zero times that of the weights
        made = self._product(levels, 1.0, 0, None).mul_(scales.reshape(rows))
        made.addcmul_(self._of_ones(levels), (scales * zeros).reshape(rows), value=-1)
        if self.bias is not None:
            made += self.bias if self._of is None else self.bias.reshape(-1, 1, 1)
        return made.to(x.dtype)

    def _product(self, levels: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        given = (levels, scale, zero, self._packed, self.scales, self._zeros, bias)
        made: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        if self._of is None:
            return torch.ops.onednn.qlinear_pointwise(*given, *made)
        return torch.ops.onednn.qconv2d_pointwise(*given, *self._of, *made)

    def _of_ones(self, levels: Tensor) -> Tensor:
        """What it makes of ones, (1, ...): the same for all images of a size."""
        size = levels.shape[1:]
        if self._ones is None or self._ones[0] != size:
            self._ones = size, self._product(torch.ones_like(levels[:1]), 1.0, 0, None)
        return self._ones[1]


if hasattr(torch.ops.onednn, "qconv2d_pointwise"):

    @register_flop_formula(torch.ops.onednn.qconv2d_pointwise)
    def _of_convolution(x: Any, x_scale: Any, x_zero: Any, weight: Any, *given: Any, out_shape: Any = None, **more: Any) -> int:
        return conv_flop_count(x, weight, out_shape)

    @register_flop_formula(torch.ops.onednn.qlinear_pointwise)
    def _of_linear(x: Any, x_scale: Any, x_zero: Any, weight: Any, *given: Any, out_shape: Any = None, **more: Any) -> int:
        rows = 1
        for size in x:
            rows *= size
        return 2 * rows * out_shape[-1]
