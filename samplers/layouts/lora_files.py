"""LoRA files: diffusers reads most formats, and the table of a layout those of kohya that diffusers does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.layout import LORA, lora_from_kohya

PEFT = "base_model.model."  # prefix of the keys of an adapter that PEFT saved


def lora_source(pipeline: Any, file: Path) -> tuple[Any, dict[str, Any]]:
    """The first argument of a pipeline's `load_lora_weights` for a LoRA file, and its keyword arguments.

    Raises:
        ValueError: a matrix in the file does not fit the network, or a file of PEFT has no adapter_config.json next to it.
    """
    family = family_of(pipeline)
    if (peft := _from_peft(file)) is not None:
        return {f"{family.network_part}.{name}": tensor for name, tensor in peft.items()}, {}
    if family.original_layout is not None and family.original_layout.reads_loras:
        weights = load_file(file)
        if weights and all(name.startswith(LORA) for name in weights):
            shapes = _shapes(network_of(pipeline))
            rows = family.original_layout.lora_rows(network_of(pipeline).config, list(shapes))
            if (converted := lora_from_kohya(rows, weights, shapes)) is not None:
                return {f"{family.network_part}.{name}": tensor for name, tensor in converted.items()}, {}
    return str(file.parent), {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}


def _from_peft(file: Path) -> dict[str, Tensor] | None:
    """The matrices of an adapter that PEFT saved, by the layers of its network, with its scales in B; None for other files."""
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
    if not names or not all(name.startswith(PEFT) for name in names):
        return None
    config = file.parent / "adapter_config.json"
    if not config.is_file():
        raise ValueError(f"{file.name} has PEFT's names; expects PEFT's adapter_config.json next to it, which has the alpha")
    adapter = LoraConfig.from_pretrained(str(file.parent))
    weights = {name.removeprefix(PEFT).replace(".default.", "."): value for name, value in load_file(file).items()}
    for name in (name for name in weights if name.endswith(".lora_B.weight")):
        layer = name.removesuffix(".lora_B.weight")
        alpha = adapter.alpha_pattern.get(get_pattern_key(adapter.alpha_pattern, layer), adapter.lora_alpha)
        rank = weights[name].shape[1]
        weights[name] = weights[name] * (alpha / (rank**0.5 if adapter.use_rslora else rank))
    return weights


def lora_weights(pipeline: Any, file: Path) -> dict[str, Tensor]:
    """The weights of a LoRA file by diffusers' names, each with the name of its component as prefix."""
    source, settings = lora_source(pipeline, file)
    found = pipeline.lora_state_dict(source, unet_config=network_of(pipeline).config, **settings)
    state: dict[str, Tensor] = found[0] if isinstance(found, tuple) else found  # with the alphas of a U-Net's LoRA
    return state


def _shapes(network: Any) -> dict[str, Any]:
    """The shapes of the weights of a network, with the names that they have without adapters."""
    return {name.replace(".base_layer.", "."): tensor.shape for name, tensor in network.state_dict().items()}
