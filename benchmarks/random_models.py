"""Pipelines of the published architectures with random weights, for measurements that do not depend on the weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch

from gendistill.samplers.families import family_called
from gendistill.samplers.missing_weights import network_class
from gendistill.samplers.single_file import ARCHITECTURES, clip_tokenizer, left_out


def random_pipeline(
    architecture: str,
    *,
    latents: int | None = 64,
    dtype: torch.dtype = torch.float32,
    narrower: Mapping[str, Mapping[str, object]] | None = None,
    without: Sequence[str] = (),
) -> Any:
    """A pipeline with denoiser, VAE, text encoders and CLIP's vocabulary, whose weights are in `dtype` from the beginning.

    Args:
        architecture: the name of a folder in `samplers/architectures` with CLIP text encoders.
        latents: default height and width of the latents; None for those of the architecture.
        narrower: changes of the configs by component.
        without: components that are None, such as a T5 and its tokenizer.
    """
    configs = ARCHITECTURES / architecture
    index = json.loads((configs / "model_index.json").read_text())
    part = family_called(index["_class_name"]).network_part
    sizes = {} if latents is None else {part: {"sample_size": latents}, "vae": {"sample_size": latents * 8}}
    encoders = [name for name in index if name.startswith("text_encoder") and name not in without]
    torch.manual_seed(0)
    parts: dict[str, Any] = dict.fromkeys(without)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for name in (part, "vae", *encoders):
            kind = network_class(index[name])
            stored = json.loads((configs / name / "config.json").read_text())
            changed = {**stored, **(narrower or {}).get(name, {}), **sizes.get(name, {})}
            if name in encoders:
                config = kind.config_class(
                    **{key: changed[key] for key in changed if key not in ("architectures", "model_type")}
                )
                parts[name] = kind(config).to(dtype)
                pad = "<|endoftext|>" if changed["hidden_act"] == "quick_gelu" else "!"
                parts[name.replace("text_encoder", "tokenizer")] = clip_tokenizer(pad)
            else:
                parts[name] = kind.from_config(changed).to(dtype)
            parts[name].eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(configs / "scheduler")
    return getattr(diffusers, index["_class_name"])(**parts, scheduler=scheduler, **left_out(index))
