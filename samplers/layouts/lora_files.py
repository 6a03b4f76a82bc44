"""LoRA files: diffusers reads most formats, and the table of a layout those of kohya that diffusers does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.layout import LORA, lora_from_kohya


def lora_source(pipeline: Any, file: Path) -> tuple[Any, dict[str, Any]]:
    """The first argument of a pipeline's `load_lora_weights` for a LoRA file, and its keyword arguments.

    Raises:
        ValueError: a matrix in the file does not fit the network.
    """
    family = family_of(pipeline)
    if family.original_layout is not None and family.original_layout.reads_loras:
        weights = load_file(file)
        if weights and all(name.startswith(LORA) for name in weights):
            shapes = _shapes(network_of(pipeline))
            rows = family.original_layout.lora_rows(network_of(pipeline).config, list(shapes))
            if (converted := lora_from_kohya(rows, weights, shapes)) is not None:
                return {f"{family.network_part}.{name}": tensor for name, tensor in converted.items()}, {}
    return str(file.parent), {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}


def lora_weights(pipeline: Any, file: Path) -> dict[str, Tensor]:
    """The weights of a LoRA file by diffusers' names, each with the name of its component as prefix."""
    source, settings = lora_source(pipeline, file)
    found = pipeline.lora_state_dict(source, unet_config=network_of(pipeline).config, **settings)
    state: dict[str, Tensor] = found[0] if isinstance(found, tuple) else found  # with the alphas of a U-Net's LoRA
    return state


def _shapes(network: Any) -> dict[str, Any]:
    """The shapes of the weights of a network, with the names that they have without adapters."""
    return {name.replace(".base_layer.", "."): tensor.shape for name, tensor in network.state_dict().items()}
