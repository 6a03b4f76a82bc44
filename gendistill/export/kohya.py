"""A LoRA under the names that kohya's scripts gave them: what ComfyUI and WebUI look for."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from gendistill.export.original_layout import unet_name
from gendistill.samplers.families import network_of


def kohya_weights(pipeline: Any, adapter: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a pipeline's adapter: `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha` for each layer.

    Names are diffusers' with underscores, `lora_unet_down_blocks_0_...`; of Stable Diffusion XL the original ones,
    `lora_unet_input_blocks_4_1_...`, as kohya's scripts and their readers have them.

    Raises:
        ValueError: there is no such adapter, or it is of a kind that the format has no place for (DoRA, biases).
    """
    original = type(pipeline).__name__ == "StableDiffusionXLPipeline"
    weights: dict[str, Tensor] = {}
    network = network_of(pipeline)
    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        if layer.use_dora.get(adapter) or up.bias is not None:
            raise ValueError(f"the LoRA has {path} as DoRA or with a bias; kohya's format takes plain low-rank weights")
        name = unet_name(f"{path}.weight", network.config).removesuffix(".weight") if original else path
        key = f"lora_unet_{name.replace('.', '_')}"
        rank = down.weight.shape[0]
        weights[f"{key}.lora_down.weight"] = down.weight.detach().to("cpu", dtype).contiguous()
        weights[f"{key}.lora_up.weight"] = up.weight.detach().to("cpu", dtype).contiguous()
        weights[f"{key}.alpha"] = torch.tensor(layer.scaling[adapter] * rank, dtype=torch.float32)
    if not weights:
        raise ValueError(f"the network has no LoRA named {adapter}")
    return weights
