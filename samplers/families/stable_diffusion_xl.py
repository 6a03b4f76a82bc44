"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.samplers.layouts.unet_layout import StableDiffusionXLLayout
from gendistill.schedulers import sigma_data_of

SIZES = 6  # original height and width, the crop's top and left, target height and width


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL, with a second text encoder, which also gives a pooled embedding, and the image's size and crop as
    conditions (Podell et al. 2023, section 2.2).
    """

    summary = "Stable Diffusion XL: a U-Net in latent space with two text encoders and the image size as a condition"
    pipelines = ("StableDiffusionXLPipeline",)
    prompt_encoders = ("text_encoder", "text_encoder_2")
    rectangles = False
    original_layout = StableDiffusionXLLayout()

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, self.device(pipeline), 1, False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def unconditional(self, pipeline: Any) -> Conditions:
        """The pipeline's embeddings of an empty negative prompt: zeros with `force_zeros_for_empty_prompt`, as for SDXL."""
        _, embeds, _, pooled = pipeline.encode_prompt("", None, self.device(pipeline), 1, True)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def codec(self, pipeline: Any) -> Codec:
        """The codec with `latents_mean` and `latents_std` if the VAE's config has both, as in diffusers' pipelines."""
        mean, std = (pipeline.vae.config.get(name) for name in ("latents_mean", "latents_std"))
        statistics = {} if mean is None or std is None else {"mean": mean, "std": std}
        return LatentCodec(pipeline.vae, **statistics, sigma_data=sigma_data_of(pipeline.scheduler))

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        """Conditions with `size` as original and target size and without a crop, the pipeline's default."""
        embeds, sizes = encoded["prompt_embeds"], None
        if size is not None:
            row = torch.tensor([*size, 0, 0, *size], dtype=embeds.dtype, device=embeds.device)
            sizes = row.repeat(len(embeds), 1)
        return Conditioning(prompt_embeds=embeds, pooled_embeds=encoded["pooled_prompt_embeds"], time_ids=sizes)

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        pooled, sizes = (conditioning[name].to(dtype) for name in ("pooled_embeds", "time_ids"))
        inputs = super().network_inputs(config, x_t, t, conditioning, dtype)
        return {**inputs, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        pooled = config["projection_class_embeddings_input_dim"] - SIZES * config["addition_time_embed_dim"]
        shapes = {"pooled_embeds": (batch, pooled), "time_ids": (batch, SIZES)}
        added = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
        return Conditioning(**super().example_conditioning(config, batch, dtype), **added)

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        zeros = pipeline.config.force_zeros_for_empty_prompt
        return StableDiffusionXLPipeline(**{**pipeline.components, **parts}, force_zeros_for_empty_prompt=zeros)
