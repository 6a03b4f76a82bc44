"""Convert a LoRA to the format of kohya's training scripts, which ComfyUI and WebUI read."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from gendistill.samplers.families import network_of
from gendistill.samplers.layouts.layout import OriginalLayout, lora_to_kohya


def kohya_weights(pipeline: Any, layout: OriginalLayout, adapter: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a pipeline's adapter: `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha` for each layer.

    As in kohya's scripts, names are those of the original release with underscores, `lora_unet_input_blocks_4_1_...`; for
    Stable Diffusion 1.x and 2.x they are diffusers' names.

    Raises:
        ValueError: there is no such adapter, or the format does not support it (DoRA, biases).
    """
    layers: dict[str, tuple[Tensor, Tensor, float]] = {}
    network = network_of(pipeline)
    shapes: dict[str, torch.Size] = {}
    for path, layer in network.named_modules():
        if path.endswith(".base_layer") or not isinstance(weight := getattr(layer, "weight", None), Tensor):
            continue
        shapes[f"{path}.weight"] = weight.shape
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        if layer.use_dora.get(adapter) or up.bias is not None:
            raise ValueError(f"the LoRA of {path} has DoRA or a bias; kohya's format supports only plain low-rank weights")
        matrices = (down.weight.detach().to("cpu", dtype), up.weight.detach().to("cpu", dtype))
        layers[path] = (*matrices, float(layer.scaling[adapter]))
    if not layers:
        raise ValueError(f"the network has no LoRA named {adapter}")
    return lora_to_kohya(layout.lora_rows(network.config, list(shapes)), layers, shapes)
