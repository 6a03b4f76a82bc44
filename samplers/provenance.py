"""Everything that determines what a model or a codec computes, as JSON values for the key of a cache.

`provenance` describes an object by its content: weights by their hash, a part of a diffusers pipeline by its class, config and
dtype, a dataclass by all of its fields. A name or a path is no content. An object of an unknown class is an error, so that
nothing is left out of a key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import isroutine
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from gendistill.samplers.codec import LatentCodec, PixelCodec
from gendistill.samplers.families import Family
from gendistill.samplers.sampler import hash_of_weights

IRRELEVANT = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that its latents do not depend on


def provenance(value: Any) -> Any:
    """Everything that determines the behaviour of `value`, as JSON values.

    Raises:
        TypeError: the class of `value` has no known provenance.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return network_provenance(value)
    if isinstance(value, SchedulerMixin):
        return [type(value).__name__, _config(value)]
    if isinstance(value, PreTrainedTokenizerBase):
        return _tokenizer(value)
    if isinstance(value, LatentCodec | PixelCodec):
        return [type(value).__name__, {name: provenance(part) for name, part in vars(value).items() if not isroutine(part)}]
    if isinstance(value, Family):
        return type(value).__name__
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Tensor):
        return hash_of_weights({"": _Holder(value)})
    if callable(fingerprint := getattr(value, "fingerprint", None)):
        return fingerprint()
    if isinstance(value, Mapping):
        return {str(name): provenance(part) for name, part in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [provenance(part) for part in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if is_dataclass(value) and not isinstance(value, type):
        described = {field.name: provenance(getattr(value, field.name)) for field in fields(value) if field.init}
        return {"class": type(value).__name__, **described}
    if isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{type(value).__name__}: has no provenance for the key of a cache; expects a dataclass or JSON values")


def network_provenance(network: nn.Module) -> dict[str, Any]:
    """Class, config, layers, dtypes and weights of a network."""
    layers = re.sub(r"0x[0-9a-f]+", "", repr(network))
    return {
        "class": type(network).__name__,
        "config": _config(network) if hasattr(network, "config") else {},
        "layers": hashlib.sha256(layers.encode()).hexdigest()[:16],  # strides, slopes and eps are neither weights nor config
        "weights": hash_of_weights({"": network}),
    }


def pipeline_provenance(pipeline: Any, leaving_out: Iterable[str] = ()) -> dict[str, Any]:
    """Everything in a diffusers pipeline that determines its latents and images, except the parts `leaving_out`."""
    out = {*IRRELEVANT, *leaving_out}
    parts = {name: part for name, part in pipeline.components.items() if name not in out and part is not None}
    options = {name: value for name, value in pipeline.config.items() if name not in pipeline.components and name[0] != "_"}
    options.pop("requires_safety_checker", None)
    return {"pipeline": type(pipeline).__name__, "options": _as_json(options), **{n: provenance(p) for n, p in parts.items()}}


def weights_fingerprint(network: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights, without LoRA adapters."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        digest.update(name.replace(".base_layer.", ".").encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Holder(nn.Module):
    """A tensor as the state of a module."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", tensor.detach())


def _config(component: Any) -> dict[str, Any]:
    """The config of a component as JSON values, without the fields that name its origin or its writer."""
    config = component.config.to_dict() if hasattr(component.config, "to_dict") else dict(component.config)
    ignored = ("transformers_version", "architectures")
    return _as_json({name: value for name, value in config.items() if name[0] != "_" and name not in ignored})


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(values), default=str)))


def _tokenizer(tokenizer: Any) -> list[Any]:
    """Class, vocabulary, rules and length of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(rules, dict):
        rules |= {"truncation": None, "padding": None}  # those of the latest call
    settings = [tokenizer.model_max_length, tokenizer.padding_side, _as_json(tokenizer.special_tokens_map)]
    return [type(tokenizer).__name__, hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:16], settings]
