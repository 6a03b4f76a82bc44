"""Fingerprints of the weights and configs that determine what a teacher generates and encodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher
from gendistill.samplers.codec import Codec, LatentCodec


def weights_fingerprint(network: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights, without LoRA adapters."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        digest.update(name.replace(".base_layer.", ".").encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprints(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Weight fingerprints of networks by name."""
    return {name: weights_fingerprint(network) for name, network in networks.items()}


def codec_provenance(codec: Codec) -> dict[str, Any]:
    """Weights and scaling of an autoencoder: they determine its latent space."""
    scaling: list[Any] = [1.0, 0.0]
    if isinstance(codec, LatentCodec):
        scaling = [codec.scaling_factor, codec.mean, *([] if codec.std == 1 else [codec.std])]
    return {**fingerprints(codec.networks), "scaling": scaling}


def denoiser_provenance(denoiser: Denoiser) -> dict[str, Any]:
    """Weights, config and prediction type of a denoiser."""
    network = denoiser.network
    return {
        "network": weights_fingerprint(network),
        "network_config": _config(network),
        "prediction_type": denoiser.prediction_type,
    }


def teacher_provenance(teacher: Teacher) -> dict[str, Any]:
    """Everything in a teacher that determines the latents it generates from given noise and prompts."""
    scheduler = teacher.pipeline.scheduler
    return {
        **denoiser_provenance(teacher.denoiser),
        "scheduler": [type(scheduler).__name__, _config(scheduler)],
        "latents": list(teacher.codec.latent_shape(teacher.resolution)),
        **codec_provenance(teacher.codec),
        **fingerprints(teacher.prompt_encoders),
    }


def _config(component: Any) -> dict[str, Any]:
    """The config of a component of a diffusers pipeline as JSON values, without the fields that name its origin."""
    config = {name: value for name, value in component.config.items() if not name.startswith("_")}
    return dict(json.loads(json.dumps(config, default=str)))
