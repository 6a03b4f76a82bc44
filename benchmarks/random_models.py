"""Pipelines of the published architectures with random weights: for what does not depend on what they have learned."""

import json
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gendistill.samplers.single_file import ARCHITECTURES, clip_tokenizer, left_out


def random_pipeline(
    architecture: str,
    *,
    latents: int = 64,
    dtype: torch.dtype = torch.float32,
    narrower: Mapping[str, Mapping[str, object]] | None = None,
) -> Any:
    """UNet, VAE, text encoders and CLIP's vocabulary.

    Args:
        architecture: sd1, sd2-base, sd2-v or sdxl.
        latents: along an edge, of the images that it samples by itself.
        narrower: by part, what differs from its config.
    """
    configs = ARCHITECTURES / architecture
    index = json.loads((configs / "model_index.json").read_text())

    def config(part: str, **changes: object) -> dict[str, Any]:
        stored = json.loads((configs / part / "config.json").read_text())
        return {**stored, **(narrower or {}).get(part, {}), **changes}

    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel.from_config(config("unet", sample_size=latents)).to(dtype),
        "vae": diffusers.AutoencoderKL.from_config(config("vae", sample_size=latents * 8)).to(dtype),
    }
    for number in ("", "_2") if "text_encoder_2" in index else ("",):
        settings = config(f"text_encoder{number}")
        kind = CLIPTextModelWithProjection if number else CLIPTextModel
        settings = {name: value for name, value in settings.items() if name not in ("architectures", "model_type")}
        parts[f"text_encoder{number}"] = kind(CLIPTextConfig(**settings)).to(dtype)
        parts[f"tokenizer{number}"] = clip_tokenizer("<|endoftext|>" if settings["hidden_act"] == "quick_gelu" else "!")
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(configs / "scheduler")
    empty = {name: None for name in ("feature_extractor",) if name in index}
    return getattr(diffusers, index["_class_name"])(**parts, scheduler=scheduler, **left_out(index), **empty)
