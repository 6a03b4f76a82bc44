"""Convert a LoRA to the format of kohya's training scripts, which ComfyUI and WebUI read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from gendistill.export.low_rank import equal_ranks
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.layout import OriginalLayout, lora_to_kohya
from gendistill.samplers.loras import Matrices

KOHYA_FILE = "kohya/lora.safetensors"  # in a subfolder, as diffusers expects one LoRA in a folder


def write_kohya_file(pipeline: Any, adapter: str, folder: Path, dtype: torch.dtype, encoders: Mapping[str, Matrices]) -> None:
    """Write a pipeline's adapter to `KOHYA_FILE` in a folder, for a family whose LoRAs have a format of kohya's.

    Args:
        encoders: matrices A and B of the layers of text encoders.
    """
    if (layout := family_of(pipeline).original_layout) is None:
        return
    weights = kohya_weights(pipeline, layout, adapter, dtype) | kohya_encoder_weights(pipeline, encoders, dtype)
    (folder / KOHYA_FILE).parent.mkdir()
    save_file(weights, folder / KOHYA_FILE, metadata={"format": "pt", **kohya_metadata(weights)})


def kohya_encoder_weights(pipeline: Any, encoders: Mapping[str, Matrices], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of text encoders in kohya's format, from their matrices A and B by layer."""
    weights: dict[str, Tensor] = {}
    for name, layers in equal_ranks(pipeline, encoders).items():
        number = name.removeprefix("text_encoder").removeprefix("_") or ("1" if hasattr(pipeline, "text_encoder_2") else "")
        for path, (down, up) in layers.items():
            key = f"lora_te{number}_{path.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = down.to("cpu", dtype).contiguous()
            weights[f"{key}.lora_up.weight"] = up.to("cpu", dtype).contiguous()
            weights[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return weights


def kohya_metadata(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a LoRA in kohya's format: its kind, rank and alpha."""
    rank = max(len(weight) for name, weight in weights.items() if name.endswith(".lora_down.weight"))
    alpha = max(float(weight) for name, weight in weights.items() if name.endswith(".alpha"))
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}


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
