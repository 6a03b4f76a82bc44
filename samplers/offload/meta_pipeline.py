"""A model's pipeline on the meta device, where networks have shapes and configs but no values, without loading weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from gendistill.samplers.families import require_supported
from gendistill.samplers.loading import configs_of
from gendistill.samplers.single_file import ARCHITECTURES, left_out


def meta_pipeline(model: str | Path, *, config: str | None = None) -> Any:
    """The diffusers pipeline that `open_pipeline` would open, with all networks on the meta device.

    `family_of`, `network_of` and `meta_network_like` support it like any other pipeline, and it has the model's scheduler.
    Tokenizers and safety checker are None. All networks are frozen, in evaluation mode and in float32.

    Args:
        model: a local pipeline folder or checkpoint, with or without weights, or the name of a known architecture: `sdxl`.
        config: for a checkpoint only, see `architecture_of`.

    Raises:
        ValueError: the model is on the hub or does not exist, or its family is not supported.
    """
    folder = configs_here(model, config)
    index = json.loads((folder / "model_index.json").read_text())
    require_supported(model, str(index.get("_class_name")))
    kind: Any = getattr(diffusers, index["_class_name"])
    expected = inspect.signature(kind.__init__).parameters
    absent = left_out(index, folder)
    parts = {name: _component(folder / name, entry) for name, entry in index.items() if name in expected and name not in absent}
    return kind(**parts | absent)


def meta_network_like(network: Any, **changes: Any) -> Any:
    """A network of the same class and config on the meta device, frozen and in evaluation mode.

    Args:
        network: a diffusers or transformers model, on any device.
        changes: values that replace those of a diffusers model's config, such as `time_cond_proj_dim=256`.
    """
    kind: Any = type(network)
    with torch.device("meta"):
        network_on_meta = kind.from_config(network.config, **changes) if hasattr(kind, "from_config") else kind(network.config)
    return network_on_meta.eval().requires_grad_(False)


def configs_here(model: str | Path, config: str | None = None) -> Path:
    """The local folder with the configs of a model; arguments and errors as for `meta_pipeline`."""
    known = {folder.name: folder for folder in ARCHITECTURES.iterdir()}
    if str(model) in known:
        return known[str(model)]
    if (Path(model) / "model_index.json").is_file():
        return Path(model)
    folder = configs_of(model, config=config)
    if folder is None:
        raise ValueError(f"model {model}: its configs are on the hub; expects a local one, or {', '.join(sorted(known))}")
    return folder


def _component(folder: Path, entry: Any) -> Any:
    """A component by its entry in model_index.json, [library, class]; other values are settings of the pipeline."""
    if not isinstance(entry, list):
        return entry
    library, name = entry
    kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), str(name), None)
    ancestors = getattr(kind, "__mro__", ())
    if diffusers.SchedulerMixin in ancestors:
        return kind.from_pretrained(folder)
    if nn.Module not in ancestors:
        return None
    with torch.device("meta"):
        if diffusers.ModelMixin in ancestors:
            network_on_meta = kind.from_config(kind.load_config(folder))
        else:
            network_on_meta = kind(kind.config_class.from_pretrained(folder))
    return network_on_meta.eval().requires_grad_(False)
