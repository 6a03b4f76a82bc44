"""A Stable Diffusion pipeline as one checkpoint in the original layout: the inverse of diffusers' conversion."""

import re

import torch
from safetensors.torch import save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
}
VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_original_layout(pipeline, file, version=1):
    """Write the weights of Stable Diffusion 1, 2 or "xl" to one .safetensors."""
    weights = {}
    for name, tensor in pipeline.unet.state_dict().items():
        weights["model.diffusion_model." + unet_name(name, pipeline.unet.config)] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        name = vae_name(name, len(pipeline.vae.config.block_out_channels))
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name)
        weights["first_stage_model." + name] = tensor[..., None, None] if is_projection else tensor
    if version == 2:
        weights |= open_clip_weights(pipeline.text_encoder, "cond_stage_model.model.")
    else:
        prefix = "conditioner.embedders.0." if version == "xl" else "cond_stage_model."
        for name, tensor in pipeline.text_encoder.state_dict().items():
            weights[f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    if version == "xl":
        weights |= open_clip_weights(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)


def unet_name(name, config):
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    side, rest = name.split(".", 1)
    layers = config["layers_per_block"]
    if side == "mid_block":
        kind, number, rest = rest.split(".", 2)
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{inner(kind, rest)}"
    block, kind, number, rest = rest.split(".", 3)
    block, number = int(block), int(number)
    if side == "down_blocks":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{inner(kind, rest)}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        attends = config["up_block_types"][block] == "CrossAttnUpBlock2D"
        return f"output_blocks.{first + layers}.{1 + attends}.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{inner(kind, rest)}"


def inner(kind, rest):
    if kind == "attentions":
        return rest
    part, rest = rest.split(".", 1)
    return f"{RESNET[part]}.{rest}"


def vae_name(name, blocks):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"downsamplers\.0", "downsample", re.sub(r"upsamplers\.0", "upsample", name))
    name = re.sub(r"down_blocks\.(\d+)\.(resnets\.)?", lambda m: f"down.{m[1]}." + ("block." if m[2] else ""), name)
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets\.)?", lambda m: f"up.{blocks - 1 - int(m[1])}." + ("block." if m[2] else ""), name
    )
    if found := re.match(r"(\w+)\.mid_block\.(resnets\.0|attentions\.0|resnets\.1)\.(.*)", name):
        side, part, rest = found.groups()
        if part == "attentions.0":
            for ours, theirs in VAE_ATTENTION.items():
                rest = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", rest)
        return f"{side}.mid.{VAE_MIDDLE[part]}.{rest}"
    return name


def open_clip_weights(encoder, prefix):
    """A CLIP text encoder's weights as OpenCLIP names them, with query, key and value in one."""
    weights, projections = {}, {}
    for name, tensor in encoder.state_dict().items():
        if name == "text_projection.weight":
            weights[prefix + "text_projection"] = tensor.T
            continue
        name = name.removeprefix("text_model.")
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        if found := re.match(r"(.*)\.[qkv]_proj\.(weight|bias)$", name):
            projections.setdefault(f"{prefix}{found[1]}.in_proj_{found[2]}", {})[name] = tensor
        else:
            weights[prefix + name] = tensor
    for name, parts in projections.items():  # k, q, v in the order of the alphabet
        k, q, v = (parts[part] for part in sorted(parts))
        weights[name] = torch.cat([q, k, v])
    return weights
