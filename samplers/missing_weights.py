"""A part of a pipeline whose file lacks some of its weights is refused: the libraries would leave them random, or empty."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import is_transformers_version
from torch import nn

SHOWN = 3


class MissingWeightsError(ValueError):
    """Some weights of a network are in no file."""


def open_text_encoders(
    source: object, folder: Path, index: dict[str, Any], dtype: torch.dtype, **settings: Any
) -> dict[str, Any]:
    """The networks of a pipeline's folder that are of transformers, in `dtype`, with all of their weights.

    transformers samples missing weights at random and says so in its log alone. It knows which names it renames, ties or makes by
    itself, in each of its versions, so it is asked, and not the names in the files.

    Args:
        index: the folder's model_index.json.
        settings: for `from_pretrained` of transformers.

    Raises:
        MissingWeightsError: weights are missing; the first of them are named.
    """
    opened: dict[str, Any] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] != "transformers" or not (folder / name / "config.json").is_file():
            continue
        kind: Any = getattr(transformers, str(entry[1]), None)
        if not hasattr(kind, "base_model_prefix"):  # as models have, and tokenizers have not
            continue
        name_of_dtype = "dtype" if is_transformers_version(">=", "4.56.0") else "torch_dtype"
        opened[name], loading = kind.from_pretrained(
            str(folder / name), output_loading_info=True, **{name_of_dtype: dtype}, **settings
        )
        require_all(source, name, loading["missing_keys"])
    return opened


def require_all(source: object, part: str, missing: Collection[str]) -> None:
    """MissingWeightsError, which names the first of them, where weights of a part are missing."""
    if missing:
        names = ", ".join(sorted(missing)[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise MissingWeightsError(
            f"model {source} lacks {len(missing)} of the weights of its {part} ({names}{more}); expects all of them, "
            "and a LoRA fused before the network is saved"
        )


def require_loaded(source: object, parts: dict[str, Any]) -> None:
    """MissingWeightsError where a network of diffusers has weights that are in no file: they hold no numbers then."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            require_all(source, name, [key for key, value in part.state_dict().items() if value.is_meta])
