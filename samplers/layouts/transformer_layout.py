"""Checkpoints of pipelines with a transformer: their networks are built from configs and filled by the table of the layout.

diffusers' own conversion assumes the widths of the published Flux, and loses a projection of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from gendistill.samplers.layouts.autoencoder_layout import require_autoencoder, vae_weights
from gendistill.samplers.layouts.layout import NETWORK, OriginalLayout, from_original, to_original
from gendistill.samplers.missing_weights import network_class, require_all

CLIP_MODEL = "text_model."
SCALE = "scale_weight"  # in names of scales for weights in float8, which ComfyUI's files may have
TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # of T5


class TransformerLayout(OriginalLayout):
    """The layout of a pipeline with a `transformer`, an `AutoencoderKL`, and CLIP and T5 text encoders."""

    reads_loras = True

    def require_autoencoder(self, pipeline: Any) -> None:
        require_autoencoder(getattr(pipeline, "vae", None))

    def weights(self, pipeline: Any) -> dict[str, Tensor]:
        self.release(pipeline)
        network = pipeline.transformer.state_dict()
        rows = self.rows(pipeline.transformer.config, network)
        weights = {NETWORK + name: tensor for name, tensor in to_original(rows, network).items()}
        weights |= vae_weights(pipeline.vae, self.prefixes["vae"][0])
        for component, prefix in self.encoder_prefixes.items():
            if (encoder := getattr(pipeline, component, None)) is not None:
                state = encoder.state_dict()
                weights |= {prefix + _released(encoder, name): state[name] for name in state.keys() - TIED.keys()}
        return weights

    def marks(self, scheduler: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Programs read all of these checkpoints as flow matching."""
        return {} if scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction" else None

    @property
    def encoder_prefixes(self) -> dict[str, str]:
        """The prefix of each text encoder, by component."""
        return {name: prefix for name, (prefix, *_) in self.prefixes.items() if name.startswith("text_encoder")}

    def networks(self, file: Path, folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        weights = {name.removeprefix(NETWORK): tensor for name, tensor in load_file(file).items()}
        if scaled := next((name for name in weights if SCALE in name), None):
            raise ValueError(f"{scaled} is a scale of weights in float8; expects weights in 16 or 32 bits")
        networks: dict[str, Any] = {}
        for component in [name for name in index if self.holds(name, weights)]:
            network = _without_weights(network_class(index[component]), folder / component)
            state = network.state_dict()
            converted = self._converted(component, network, weights)
            require_all(file, component, state.keys() - converted.keys())
            for name, tensor in state.items():
                if converted[name].shape != tensor.shape:
                    raise ValueError(f"{component}: {name} is {tuple(converted[name].shape)}, not {tuple(tensor.shape)}")
            wide = set(getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
            dtypes = {name: torch.float32 if wide & set(name.split(".")) else dtype for name in state}
            network.load_state_dict({name: converted[name].to(dtypes[name]) for name in state}, assign=True)
            if component in self.encoder_prefixes:
                network.tie_weights()
            networks[component] = network.eval()
        return networks

    def _converted(self, component: str, network: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a component by diffusers' and transformers' names; more than it has, or fewer."""
        if component == "vae":
            first = next(prefix for prefix in self.prefixes[component] if any(name.startswith(prefix) for name in weights))
            return convert_ldm_vae_checkpoint(_below(weights, first), config=network.config)
        if component not in self.encoder_prefixes:
            state = network.state_dict()
            shapes = {name: tensor.shape for name, tensor in state.items()}
            return from_original(self.rows(network.config, state), weights, shapes)
        found = _below(weights, self.encoder_prefixes[component])
        converted = {_own(network, name): tensor for name, tensor in found.items()}
        converted |= {name: converted[source] for name, source in TIED.items() if source in converted}
        if (projection := getattr(network, "text_projection", None)) is not None:
            converted.setdefault("text_projection.weight", torch.eye(*projection.weight.shape))
        return converted


def _without_weights(kind: Any, folder: Path) -> Any:
    """A network with the config in a folder, whose weights are on the meta device; its other buffers are computed."""
    with init_empty_weights():
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(folder))
        return kind(kind.config_class.from_pretrained(folder))


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _released(encoder: Any, name: str) -> str:
    """The name of a text encoder's weight in a release: transformers 5 has no prefix in `CLIPTextModel`."""
    return CLIP_MODEL + name if type(encoder).__name__ == "CLIPTextModel" and not name.startswith(CLIP_MODEL) else name


def _own(encoder: Any, name: str) -> str:
    """The inverse of `_released`."""
    wrapped = any(own.startswith(CLIP_MODEL) for own in encoder.state_dict())
    return name if wrapped else name.removeprefix(CLIP_MODEL)
