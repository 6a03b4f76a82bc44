"""Inference in 8 bits on a CPU, with one scale per output channel of a weight and one range per image of an activation.

Weights are symmetric in [-127, 127]; the range of a layer's input, from its minimum to its maximum, is mapped to 0 to 255
dynamically for each image (Jacob et al. 2018, section 2.1). oneDNN computes the products in integers; all other operations
are unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

NOT_QUANTIZED = {
    "conv_in",
    "conv_out",
    "time_embedding",
    "time_emb_proj",
    "class_embedding",
    "add_embedding",
    "lora_A",
    "lora_B",
}
LEVELS, MAX_LEVEL = 255, 127  # of an activation and of a weight


def layers_in_8_bits(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers of the numbered blocks, by path: all but those of the time embedding, the first and the last layer."""
    for path, layer in network.named_modules():
        plain, names = isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros", set(path.split("."))
        if plain and isinstance(layer.padding, str):
            continue
        if (plain or isinstance(layer, nn.Linear)) and any(map(str.isdigit, names)) and not NOT_QUANTIZED & names:
            yield path, layer


def layers_computed_in_8_bits(network: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers whose products are computed in 8 bits: `layers_in_8_bits` without those in a norm, which read the time.

    These modulate all tokens of a transformer, from one row for each image, so that they cost little in float32.
    """
    for path, layer in layers_in_8_bits(network):
        if not any(part.startswith("norm") for part in path.split(".")):
            yield path, layer


def weight_scales(weight: Tensor) -> Tensor:
    """Scale (O,) of each output channel of a weight (O, ...)."""
    return (weight.detach().float().abs().flatten(1).amax(1) / MAX_LEVEL).clamp(min=1e-12)


def input_ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (B,) of a layer's input (B, ...), for each image."""
    values = x.detach().float().flatten(1)
    low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=1e-12)
    return scale, (-low / scale).round()


def to_int8(network: nn.Module) -> None:
    """Replace a network's layers by layers that compute in 8 bits; for inference on a CPU only.

    Raises:
        ValueError: this torch has no oneDNN.
    """
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        raise ValueError("quantization int8: this torch was built without oneDNN; expects one for x86 processors")
    for path, layer in list(layers_computed_in_8_bits(network)):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Int8Layer(layer))


def is_int8(network: nn.Module) -> bool:
    """Whether `to_int8` was applied to a network."""
    return any(isinstance(layer, Int8Layer) for layer in network.modules())


class Int8Layer(nn.Module):
    """A linear layer or a convolution in 8 bits; `digest` identifies its weights, as they are packed."""

    digest: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight, scales = layer.weight.detach().float(), weight_scales(layer.weight)
        rounded = (weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).round().clamp(-MAX_LEVEL, MAX_LEVEL).to(torch.int8)
        self._convolution: Any = None
        self._ones: tuple[torch.Size, Tensor] | None = None
        if isinstance(layer, nn.Conv2d):
            self._convolution = [list(value) for value in (layer.stride, layer.padding, layer.dilation)] + [layer.groups]
            self._packed = torch.ops.onednn.qconv_prepack(rounded, scales, 1.0, 0, *self._convolution)
        else:
            self._packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        digest = hashlib.sha256(rounded.numpy().data).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self._zeros = torch.zeros(len(scales), dtype=torch.int)

    def forward(self, x: Tensor) -> Tensor:
        """Output (B, ...) for x (B, ...), in x's dtype; each image has its own range, independent of its batch."""
        scales, zeros = input_ranges(x)
        rows = [-1, *[1] * (x.ndim - 1)]
        levels = x * (1 / scales).reshape(rows)
        levels = levels.add_(zeros.reshape(rows)).round_().clamp_(0, LEVELS).to(torch.uint8)
        if len(x) == 1:
            return self._product(levels, scales.item(), int(zeros.item()), self.bias).to(x.dtype)
        # sum((level - zero) * weight) = sum(level * weight) - zero * sum(weight)
        output = self._product(levels, 1.0, 0, None).mul_(scales.reshape(rows))
        output.addcmul_(self._product_of_ones(levels), (scales * zeros).reshape(rows), value=-1)
        if self.bias is not None:
            output += self.bias if self._convolution is None else self.bias.reshape(-1, 1, 1)
        return output.to(x.dtype)

    def _product(self, levels: Tensor, scale: float, zero: int, bias: Tensor | None) -> Tensor:
        inputs = (levels, scale, zero, self._packed, self.scales, self._zeros, bias)
        outputs: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, dtype, no post-operation
        if self._convolution is None:
            return torch.ops.onednn.qlinear_pointwise(*inputs, *outputs)
        return torch.ops.onednn.qconv2d_pointwise(*inputs, *self._convolution, *outputs)

    def _product_of_ones(self, levels: Tensor) -> Tensor:
        """The product (1, ...) of the weights and ones, which is the same for all images of a size."""
        size = levels.shape[1:]
        if self._ones is None or self._ones[0] != size:
            self._ones = size, self._product(torch.ones_like(levels[:1]), 1.0, 0, None)
        return self._ones[1]


if hasattr(torch.ops.onednn, "qconv2d_pointwise"):

    @register_flop_formula(torch.ops.onednn.qconv2d_pointwise)
    def _convolution_flops(
        x: Any, x_scale: Any, x_zero: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any
    ) -> int:
        return conv_flop_count(x, weight, out_shape)

    @register_flop_formula(torch.ops.onednn.qlinear_pointwise)
    def _linear_flops(x: Any, x_scale: Any, x_zero: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        rows = 1
        for size in x:
            rows *= size
        return 2 * rows * out_shape[-1]
