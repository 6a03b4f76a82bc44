"""Errors for pipelines whose files lack weights, which the libraries would initialise at random or leave on meta."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import is_transformers_version
from safetensors import safe_open
from torch import nn

SHOWN = 3


class MissingWeightsError(ValueError):
    """Weights of a network are missing in its files."""


def open_text_encoders(
    source: object, folder: Path, index: dict[str, Any], dtype: torch.dtype, **settings: Any
) -> dict[str, Any]:
    """Load the transformers models of a pipeline's folder in `dtype`, with all of their weights.

    transformers initialises missing weights at random and only logs it. Each of its versions renames, ties and creates other
    weights, so the missing ones are read from its loading report, not from the names in the files.

    Args:
        index: the folder's model_index.json.
        settings: arguments of `from_pretrained` of transformers.

    Raises:
        MissingWeightsError: weights are missing.
    """
    opened: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] != "transformers" or not (folder / name / "config.json").is_file():
            continue
        kind: Any = getattr(transformers, str(entry[1]), None)
        if not hasattr(kind, "base_model_prefix"):  # an attribute of models, not of tokenizers
            continue
        name_of_dtype = "dtype" if is_transformers_version(">=", "4.56.0") else "torch_dtype"
        opened[name], loading = kind.from_pretrained(
            str(folder / name), output_loading_info=True, **{name_of_dtype: dtype}, **settings
        )
        require_all(source, name, loading["missing_keys"] or _missing_in_shards(folder / name))
    return opened


def _missing_in_shards(folder: Path) -> set[str]:
    """Weights that an index of shards lists but their file lacks, which transformers 4 does not report."""
    missing: set[str] = set()
    for index in folder.glob("*.safetensors.index*.json"):
        shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
        for shard in set(shards.values()):
            with safe_open(folder / shard, "pt") as file:
                missing |= {name for name, place in shards.items() if place == shard} - set(file.keys())
    return missing


def require_all(source: object, part: str, missing: Collection[str]) -> None:
    """Raise MissingWeightsError, with the first few names, if weights of a part are missing."""
    if missing:
        names = ", ".join(sorted(missing)[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise MissingWeightsError(
            f"model {source} lacks {len(missing)} of the weights of its {part} ({names}{more}); expects all of them, "
            "and a LoRA fused before the network is saved"
        )


def require_loaded(source: object, parts: dict[str, Any]) -> None:
    """Raise MissingWeightsError if a network of diffusers has weights on the meta device, which its files lack."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            require_all(source, name, [key for key, value in part.state_dict().items() if value.is_meta])
