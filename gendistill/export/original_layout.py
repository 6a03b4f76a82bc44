"""Convert a Stable Diffusion pipeline to the layout of the original release: a single checkpoint for ComfyUI and WebUI.

The inverse of diffusers' `from_single_file`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor, nn

from gendistill.samplers.families import network_of
from gendistill.schedulers import is_edm

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
    """The release whose layout fits a pipeline: `1`, `2` or `xl`.

    Raises:
        ValueError: the pipeline is not a Stable Diffusion, or has a component that the layout does not support.
    """
    kind, vae = type(pipeline).__name__, getattr(pipeline, "vae", None)
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ValueError(f"got a {kind}; the original layout exists for Stable Diffusion 1.x, 2.x and XL")
    unet = network_of(pipeline).config
    if unet.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the original layout has no guidance embedding (guidance.mode embedded); expects a student with baked guidance"
        )
    if unet["mid_block_type"] is None or not isinstance(unet["layers_per_block"], int):
        raise ValueError("the original layout expects a mid block, and the same number of layers in every block")
    if vae is None or type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"got an {type(vae).__name__}; the original layout expects the teacher's AutoencoderKL")
    if kind == "StableDiffusionXLPipeline" and vae.config.get("latents_mean") is not None:
        raise ValueError("the original layout has no latents_mean and latents_std of a VAE; expects --format diffusers")
    if kind == "StableDiffusionXLPipeline":
        return "xl"
    return "1" if pipeline.text_encoder.config.hidden_act == "quick_gelu" else "2"


def original_weights(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a Stable Diffusion pipeline by their original names.

    Raises:
        ValueError: see `release_of`; or the noise schedule is that of EDM, which the layout does not name.
    """
    if is_edm(pipeline.scheduler):
        raise ValueError("the original layout does not name a noise schedule of EDM; expects --format diffusers")
    release, unet, vae = release_of(pipeline), network_of(pipeline), pipeline.vae
    weights = {f"model.diffusion_model.{unet_name(name, unet.config)}": weight for name, weight in unet.state_dict().items()}
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
        kind, index, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{_inner(kind, rest)}"
    level, kind, index, rest = rest.split(".", 3)
    block, number = int(level), int(index)
    if side == "down_blocks":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        has_attention = config["up_block_types"][block] == "CrossAttnUpBlock2D"
        return f"output_blocks.{first + layers}.{1 + has_attention}.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, rest = rest.split(".", 1)
    return f"{RESNET[part]}.{rest}"


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
            for diffusers_name, original_name in VAE_ATTENTION.items():
                rest = re.sub(rf"^{re.escape(diffusers_name)}\.", f"{original_name}.", rest)
        return f"{side}.mid.{VAE_MIDDLE[part]}.{rest}"
    return name


def _open_clip_weights(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of a CLIP text encoder with OpenCLIP's names, and with query, key and value in one tensor."""
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
        for transformers_name, original_name in OPEN_CLIP["transformer"].items():
            name = name.replace(transformers_name, original_name)
        name = f"transformer.{name}"
        if match := re.match(r"(.*)\.([qkv])_proj\.(weight|bias)$", name):
            projections.setdefault(f"{prefix}{match[1]}.in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            weights[prefix + name] = tensor
    return weights | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in projections.items()}
