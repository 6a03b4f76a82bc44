"""A Stable Diffusion pipeline in the layout of the original release: what ComfyUI and WebUI read as one checkpoint.

The inverse of what diffusers' `from_single_file` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor, nn

from gendistill.samplers.families import network_of

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TO_LDM: dict[str, Any] = DIFFUSERS_TO_LDM_MAPPING
UNET_ENDS = {**TO_LDM["unet"]["layers"], **TO_LDM["unet"]["addition_embed_type"]}
OPEN_CLIP = TO_LDM["openclip"]
VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
RELEASES = {"1": "stable-diffusion-v1", "2": "stable-diffusion-v2", "xl": "stable-diffusion-xl-v1-base"}


def release_of(pipeline: Any) -> str:
    """`1`, `2` or `xl`: the release whose layout a pipeline's weights have.

    Raises:
        ValueError: it is no Stable Diffusion, or has a part that the layout has no place for.
    """
    kind, vae = type(pipeline).__name__, getattr(pipeline, "vae", None)
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ValueError(f"a {kind} has no original layout; expects a Stable Diffusion 1.x, 2.x or XL")
    unet = network_of(pipeline).config
    if unet.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the original layout has no place for a guidance slider (guidance.mode embedded); expects a baked student"
        )
    if unet["mid_block_type"] is None or not isinstance(unet["layers_per_block"], int):
        raise ValueError("the original layout knows blocks of one length and one in the middle; this network has others")
    if type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"the original layout has no place for an {type(vae).__name__}; expects the teacher's AutoencoderKL")
    if kind == "StableDiffusionXLPipeline":
        return "xl"
    return "1" if pipeline.text_encoder.config.hidden_act == "quick_gelu" else "2"


def original_weights(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a Stable Diffusion pipeline by their original names.

    Raises:
        ValueError: as `release_of`.
    """
    release, unet, vae = release_of(pipeline), network_of(pipeline), pipeline.vae
    weights = {f"model.diffusion_model.{unet_name(name, unet.config)}": of for name, of in unet.state_dict().items()}
    for name, tensor in vae.state_dict().items():
        name = vae_name(name, len(vae.config.block_out_channels))
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name)
        weights["first_stage_model." + name] = tensor[..., None, None] if is_projection else tensor
    if release == "2":
        weights |= _open_clip_weights(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = "conditioner.embedders.0." if release == "xl" else "cond_stage_model."
        for name, tensor in pipeline.text_encoder.state_dict().items():
            weights[f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    if release == "xl":
        weights |= _open_clip_weights(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return weights


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a weight (`....weight`, `....bias`) of a `UNet2DConditionModel`."""
    if name in UNET_ENDS:
        return UNET_ENDS[name]
    side, rest = name.split(".", 1)
    layers = config["layers_per_block"]
    if side == "mid_block":
        kind, place, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_inner(kind, rest)}"
    level, kind, place, rest = rest.split(".", 3)
    block, number = int(level), int(place)
    if side == "down_blocks":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        attends = config["up_block_types"][block] == "CrossAttnUpBlock2D"
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, rest = rest.split(".", 1)
    return f"{RESNET[part]}.{rest}"


def vae_name(name: str, levels: int) -> str:
    """The original name of a weight of an `AutoencoderKL` of so many resolutions."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"downsamplers\.0", "downsample", re.sub(r"upsamplers\.0", "upsample", name))
    name = re.sub(r"down_blocks\.(\d+)\.(resnets\.)?", lambda m: f"down.{m[1]}." + ("block." if m[2] else ""), name)
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets\.)?", lambda m: f"up.{levels - 1 - int(m[1])}." + ("block." if m[2] else ""), name
    )
    if found := re.match(r"(\w+)\.mid_block\.(resnets\.0|attentions\.0|resnets\.1)\.(.*)", name):
        side, part, rest = found.groups()
        if part == "attentions.0":
            for ours, theirs in VAE_ATTENTION.items():
                rest = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", rest)
        return f"{side}.mid.{VAE_MIDDLE[part]}.{rest}"
    return name


def _open_clip_weights(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder's weights as OpenCLIP names them, with query, key and value in one."""
    weights: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in encoder.state_dict().items():
        if name == "text_projection.weight":
            weights[prefix + "text_projection"] = tensor.T
            continue
        name = f"text_model.{name.removeprefix('text_model.')}"
        if name in OPEN_CLIP["layers"]:
            weights[prefix + OPEN_CLIP["layers"][name]] = tensor
            continue
        for ours, theirs in OPEN_CLIP["transformer"].items():
            name = name.replace(ours, theirs)
        name = f"transformer.{name}"
        if found := re.match(r"(.*)\.([qkv])_proj\.(weight|bias)$", name):
            projections.setdefault(f"{prefix}{found[1]}.in_proj_{found[3]}", {})[found[2]] = tensor
        else:
            weights[prefix + name] = tensor
    return weights | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in projections.items()}
