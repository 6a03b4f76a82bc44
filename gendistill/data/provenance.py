"""The fingerprint of weights that model cards show."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_fingerprint(network: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a network's weights, without LoRA adapters."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            continue
        digest.update(name.replace(".base_layer.", ".").encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
