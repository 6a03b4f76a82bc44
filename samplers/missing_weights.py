"""Open networks with all of their weights, which the libraries would otherwise initialise at random or leave on meta."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import is_transformers_version
from safetensors import SafetensorError, safe_open
from torch import nn

logger = logging.getLogger(__name__)

SHOWN = 3
LONGEST = 300  # characters of a library's message
UNFUSED = re.compile(r"\.base_layer\.|\blora[._]|_lora[._]|\.lora_")  # PEFT's, diffusers' and kohya's names
IP_ADAPTER = re.compile(r"_ip\.|image_projection_layers")
MADE_BY_NETWORKS = re.compile(r"position_ids$|rotary_emb\.inv_freq$|attn_mask$")  # buffers that older versions saved
OPENING_ERRORS = (OSError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, SafetensorError)  # also of configs


class MissingWeightsError(ValueError):
    """Weights of a network are missing in its files."""


def open_networks(source: object, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Open the networks in a pipeline's folder in `dtype`, each in the variant that `variant_in` its folder finds.

    Args:
        index: the folder's model_index.json, without the parts that are left out.

    Raises:
        ValueError: as `open_network`.
    """
    kinds = {name: network_class(entry) for name, entry in index.items()}
    return {name: open_network(kind, folder / name, source, name, dtype) for name, kind in kinds.items() if kind is not None}


def network_class(entry: Any) -> Any:
    """The class of a network by its entry in model_index.json, [library, class]; None for other parts."""
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library or ""), str(name), None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def open_network(kind: Any, folder: str | Path, source: object, part: str, dtype: torch.dtype = torch.float32) -> Any:
    """A network of diffusers or transformers in `dtype` and in eval mode, with all weights of its architecture.

    The libraries initialise missing weights at random and log it. Each of their versions renames, ties and creates other
    weights, so the missing ones are read from the loading report, not from the names in the files.

    Args:
        kind: its class.
        folder: its folder, or a hub id.
        source, part: the names of the model and of the network, for messages.

    Raises:
        MissingWeightsError: weights are missing, or in the file of an unfused LoRA.
        ValueError: the network cannot be opened, or weights have other shapes or values that are not finite.
    """
    is_foreign = issubclass(kind, transformers.PreTrainedModel)
    settings: dict[str, Any] = {"variant": variant_in(Path(folder)), "use_safetensors": True, "output_loading_info": True}
    if is_foreign:  # its error for another shape refers to a log message
        named = "dtype" if is_transformers_version(">=", "4.56.0") else "torch_dtype"
        settings |= {named: dtype, "ignore_mismatched_sizes": True}
    else:
        settings["torch_dtype"] = dtype
    try:
        with _without_warnings():
            try:
                network, loading = kind.from_pretrained(str(folder), **settings)
            except ValueError as error:  # diffusers before 0.33 reports missing weights only when all are initialised first
                if is_foreign or "keys are missing" not in str(error):
                    raise
                network, loading = kind.from_pretrained(str(folder), low_cpu_mem_usage=False, **settings)
    except OPENING_ERRORS as error:
        raise ValueError(f"model {source}: its {part} cannot be opened: {first_sentence(error)}") from error
    unused = [name for name in loading.get("unexpected_keys", ()) if not MADE_BY_NETWORKS.search(name)]
    if unfused := [name for name in unused if UNFUSED.search(name)]:
        raise MissingWeightsError(
            f"model {source}: its {part} has weights of a LoRA that is not fused ({listed(unfused)}); expects a LoRA fused "
            "before the network is saved (fuse_lora and unload_lora_weights), or in a file of its own"
        )
    missing = loading.get("missing_keys") or (_missing_in_shards(Path(folder)) if is_foreign else ())
    require_all(source, part, missing)
    if other := [name if isinstance(name, str) else name[0] for name in loading.get("mismatched_keys", ())]:
        raise ValueError(f"model {source}: the weights {listed(other)} of its {part} have other shapes than its config expects")
    if unused:
        kind_of = " of an IP-Adapter, which a pipeline loads from a file of its own," if IP_ADAPTER.search(unused[0]) else ""
        logger.warning("model %s: %d weights%s in its %s are not used: %s", source, len(unused), kind_of, part, listed(unused))
    require_loaded(source, {part: network})
    return network


def variant_in(folder: Path) -> str | None:
    """The variant (`fp16` in `model.fp16.safetensors`) of the weights in a network's folder; None if it has plain ones.

    Of several variants the first of fp32, fp16, bf16 and the alphabet.
    """
    if not folder.is_dir():
        return None
    names = [path.name for path in folder.iterdir()]
    if any(re.fullmatch(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors", name) for name in names):
        return None
    patterns = (r"\w*model\.([\w-]+?)(?:-\d+-of-\d+)?\.safetensors", r"\w*model-\d+-of-\d+\.([\w-]+)\.safetensors")
    found = {match[1] for name in names for pattern in patterns if (match := re.fullmatch(pattern, name))}
    return min(found, key=lambda name: (name != "fp32", name != "fp16", name != "bf16", name), default=None)


def require_pairs(where: str, weights: Collection[str]) -> None:
    """Raise MissingWeightsError, which begins with `where`, if a LoRA has one of the two matrices of a layer.

    Args:
        weights: the names in its file, in any of the formats that diffusers reads.
    """
    pairs = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
    names = set(weights)
    expected = {name.replace(a, b) for name in names for pair in pairs for a, b in (pair, pair[::-1]) if a in name}
    if missing := expected - names:
        message = f"{where} lacks {len(missing)} of its matrices ({listed(missing)}); expects two of each layer"
        raise MissingWeightsError(message)


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
        raise MissingWeightsError(
            f"model {source} lacks {len(missing)} of the weights of its {part} ({listed(missing)}); expects all of them, "
            "and a LoRA fused before the network is saved"
        )


def require_loaded(source: object, parts: dict[str, Any]) -> None:
    """Raise ValueError if a network has weights on the meta device, which its files lack, or weights that are not finite."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            weights = part.state_dict()
            require_all(source, name, [key for key, value in weights.items() if value.is_meta])
            require_finite(f"model {source}: its {name}", weights)


def require_finite(where: str, weights: dict[str, torch.Tensor]) -> None:
    """Raise ValueError, which begins with `where`, if weights are NaN or infinite."""
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel()}
    maxima = torch._foreach_norm(list(floating.values()), float("inf")) if floating else ()
    if broken := [name for name, largest in zip(floating, maxima, strict=True) if not largest.isfinite()]:
        overflow = any(floating[name].dtype == torch.float16 and not floating[name].isnan().any() for name in broken)
        advice = "--dtype bfloat16 or float32, as float16 has no values above 65504" if overflow else "an undamaged file"
        raise ValueError(f"{where} has weights that are not finite ({listed(broken)}); expects {advice}")


def listed(names: Collection[str]) -> str:
    """The first names in alphabetical order, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def first_sentence(error: Exception) -> str:
    """The first sentence of a library's error message, without its advice about arguments of functions."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[^.]\.) (?=[A-Z])", text)[0][:LONGEST].rstrip(".")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the libraries' warnings about weights; `open_network` reports them."""
    libraries: Any = (diffusers.utils.logging, transformers.utils.logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
