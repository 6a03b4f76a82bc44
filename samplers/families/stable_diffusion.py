"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family
from gendistill.samplers.layouts.layout import OriginalLayout
from gendistill.samplers.layouts.unet_layout import StableDiffusionLayout
from gendistill.schedulers import sigma_data_of

TOKENS = 77  # per prompt, of CLIP's tokenizers


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x: a `UNet2DConditionModel` with cross-attention to the states of one CLIP text encoder."""

    summary = "Stable Diffusion 1.x and 2.x: a U-Net in latent space with one CLIP text encoder"
    pipelines: tuple[str, ...] = ("StableDiffusionPipeline",)
    prompt_encoders: tuple[str, ...] = ("text_encoder",)
    schedules = ("vp", "edm")
    texts = guided = embeds_guidance = rectangles = accepts_eta = lora = True
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
    )
    original_layout: OriginalLayout = StableDiffusionLayout()

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _ = pipeline.encode_prompt(prompts, self.device(pipeline), 1, False)
        return {"prompt_embeds": embeds}

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae, sigma_data=sigma_data_of(pipeline.scheduler))

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"])

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        inputs = {"sample": x_t, "timestep": t, "encoder_hidden_states": conditioning["prompt_embeds"].to(dtype)}
        if config["time_cond_proj_dim"] is not None:
            assert "guidance_scale" in conditioning, "a w-conditioned network needs a guidance scale"
            embedding = guidance_embedding(conditioning["guidance_scale"], config["time_cond_proj_dim"])
            inputs["timestep_cond"] = embedding.to(dtype)
        return inputs

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        states = torch.empty(batch, TOKENS, config["cross_attention_dim"], dtype=dtype, device="meta")
        scale = None if config["time_cond_proj_dim"] is None else torch.empty(batch, device="meta")
        return Conditioning(prompt_embeds=states, guidance_scale=scale)

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        return StableDiffusionPipeline(**{**pipeline.components, **parts}, requires_safety_checker=False)


def guidance_embedding(guidance_scale: Tensor, dimensions: int) -> Tensor:
    """Sinusoidal embedding (B, dimensions) of w = scale - 1 for guidance scales (B,).

    It is the input of w-conditioned UNets in diffusers' pipelines (Kingma et al. 2021's timestep embedding of 1000 w), so that
    a student trained with it responds to their `guidance_scale`.
    """
    half = dimensions // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=guidance_scale.device) * -(torch.log(torch.tensor(10000.0)) / (half - 1))
    )
    angles = (guidance_scale.float() - 1)[:, None] * 1000.0 * frequencies[None]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, dimensions % 2))
