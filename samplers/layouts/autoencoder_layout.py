"""The layout of an `AutoencoderKL` in the checkpoints of all releases."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
IS_PROJECTION = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight$")  # a convolution of size 1 in the releases


def require_autoencoder(vae: Any) -> None:
    """Raise ValueError if a VAE is not an `AutoencoderKL`, the only one for which the releases have a layout."""
    if vae is None or type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"got an {type(vae).__name__}; the original layout expects the teacher's AutoencoderKL")


def vae_weights(vae: Any, prefix: str) -> dict[str, Tensor]:
    """The weights of an `AutoencoderKL` by the names of the releases, with a prefix."""
    named = {vae_name(name, len(vae.config.block_out_channels)): tensor for name, tensor in vae.state_dict().items()}
    return {prefix + name: tensor[..., None, None] if IS_PROJECTION.search(name) else tensor for name, tensor in named.items()}


def vae_name(name: str, levels: int) -> str:
    """The original name of a weight of an `AutoencoderKL` with `levels` resolutions."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"downsamplers\.0", "downsample", re.sub(r"upsamplers\.0", "upsample", name))
    name = re.sub(r"down_blocks\.(\d+)\.(resnets\.)?", lambda m: f"down.{m[1]}." + ("block." if m[2] else ""), name)
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets\.)?", lambda m: f"up.{levels - 1 - int(m[1])}." + ("block." if m[2] else ""), name
    )
    if match := re.match(r"(\w+)\.mid_block\.(resnets\.0|attentions\.0|resnets\.1)\.(.*)", name):
        side, part, rest = match.groups()
        if part == "attentions.0":
            for diffusers_name, original_name in ATTENTION.items():
                rest = re.sub(rf"^{re.escape(diffusers_name)}\.", f"{original_name}.", rest)
        return f"{side}.mid.{MIDDLE[part]}.{rest}"
    return name
