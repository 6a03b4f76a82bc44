"""Convert a LoRA to the format of kohya's training scripts, which ComfyUI and WebUI read."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from gendistill.export.original_layout import unet_name
from gendistill.samplers.families import network_of


def kohya_weights(pipeline: Any, adapter: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a pipeline's adapter: `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha` for each layer.

    As in kohya's scripts, names are diffusers' names with underscores, `lora_unet_down_blocks_0_...`; for Stable Diffusion XL
    they are those of the original release, `lora_unet_input_blocks_4_1_...`.

    Raises:
        ValueError: there is no such adapter, or the format does not support it (DoRA, biases).
    """
    original = type(pipeline).__name__ == "StableDiffusionXLPipeline"
    weights: dict[str, Tensor] = {}
    network = network_of(pipeline)
    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        if layer.use_dora.get(adapter) or up.bias is not None:
            raise ValueError(f"the LoRA of {path} has DoRA or a bias; kohya's format supports only plain low-rank weights")
        name = unet_name(f"{path}.weight", network.config).removesuffix(".weight") if original else path
        key = f"lora_unet_{name.replace('.', '_')}"
        rank = down.weight.shape[0]
        weights[f"{key}.lora_down.weight"] = down.weight.detach().to("cpu", dtype).contiguous()
        weights[f"{key}.lora_up.weight"] = up.weight.detach().to("cpu", dtype).contiguous()
        weights[f"{key}.alpha"] = torch.tensor(layer.scaling[adapter] * rank, dtype=torch.float32)
    if not weights:
        raise ValueError(f"the network has no LoRA named {adapter}")
    return weights
