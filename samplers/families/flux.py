"""Flux.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import GUIDANCE_SCALE, Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.samplers.layouts.flux_layout import FluxLayout
from gendistill.samplers.layouts.layout import OriginalLayout
from gendistill.samplers.precision import in_own_precision

T5_TOKENS = 512  # per prompt, in the pipeline's calls
PATCH = 2  # edge of the patches of latents that the pipeline packs into one token


class Flux(Family):
    """Flux.1 dev: a `FluxTransformer2DModel` that has the guidance scale as an input, on the tokens of a T5.

    The network's tokens are patches of 2x2 latents with their positions. Its `guidance_scale` is the pipeline's argument; true
    classifier-free guidance is the pipeline's `true_cfg_scale`, with a negative prompt.
    """

    summary = "Flux.1 dev: a transformer trained by flow matching, with guidance as an input, a CLIP and a T5"
    pipelines: tuple[str, ...] = ("FluxPipeline",)
    network_part = "transformer"
    prompt_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    texts = guidance_input = passes_sigmas = lora = True
    original_layout: OriginalLayout | None = FluxLayout()
    schedules = ("flow",)
    stores_size = False  # it is an attribute of an opened pipeline, 1024 pixels at first
    default_guidance = 3.5
    lora_targets: tuple[str, ...] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    # T5's last layer normalises its states to at most sqrt(width) times a weight, far below 65504; bfloat16 would round CLIP's
    cache_dtype = torch.float16

    def refusal(self, pipeline: Any) -> str | None:
        if self.network(pipeline).config.guidance_embeds:
            return None
        return "its network has no guidance scale as an input, as Flux.1 schnell, a student itself; expects Flux.1 dev"

    def size(self, pipeline: Any) -> tuple[int, int]:
        edge = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
        return edge, edge

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        if size[0] == size[1]:
            pipeline.default_sample_size = size[0] // pipeline.vae_scale_factor

    def size_multiple(self, pipeline: Any) -> int:
        return int(pipeline.vae_scale_factor * PATCH)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device=self.device(pipeline), max_sequence_length=T5_TOKENS)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        output = super().sample(pipeline, conditions, unconditional, options)
        return unpacked(output, self._latent_size(pipeline, options)) if options.latent else output

    def _latent_size(self, pipeline: Any, options: SampleOptions) -> tuple[int, int]:
        """Height and width of the VAE's latents in a call."""
        height, width = self.size(pipeline)
        edge = pipeline.vae_scale_factor
        return options.arguments.get("height", height) // edge, options.arguments.get("width", width) // edge

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae, pipeline.vae.config.get("shift_factor") or 0.0)

    def image_tokens(self, config: Mapping[str, Any], size: tuple[int, int]) -> int:
        return (size[0] // PATCH) * (size[1] // PATCH)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"], pooled_embeds=encoded["pooled_prompt_embeds"])

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        channels = config["in_channels"] // PATCH**2
        return channels, channels

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The guidance scale is the pipeline's default where the conditions have none."""
        states = conditioning["prompt_embeds"].to(dtype)
        height, width = x_t.shape[2] // PATCH, x_t.shape[3] // PATCH
        rows, columns = torch.arange(height, device=x_t.device), torch.arange(width, device=x_t.device)
        positions = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        inputs = {
            "hidden_states": packed(x_t),
            "timestep": t.to(dtype) / 1000,
            "encoder_hidden_states": states,
            "pooled_projections": conditioning["pooled_embeds"].to(dtype),
            "img_ids": positions.to(dtype),
            "txt_ids": torch.zeros(states.shape[1], 3, dtype=dtype, device=x_t.device),
        }
        if config["guidance_embeds"]:
            scale = conditioning.get(GUIDANCE_SCALE)
            inputs["guidance"] = torch.full_like(t, self.default_guidance) if scale is None else scale
        return inputs

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(network.parameters()).dtype
        with in_own_precision(dtype, x_t.device.type):
            output = network(**self.network_inputs(network.config, x_t.to(dtype), t, conditioning, dtype)).sample
        return unpacked(output, (x_t.shape[2], x_t.shape[3]))

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(
            prompt_embeds=torch.empty(batch, T5_TOKENS, config["joint_attention_dim"], dtype=dtype, device="meta"),
            pooled_embeds=torch.empty(batch, config["pooled_projection_dim"], dtype=dtype, device="meta"),
            guidance_scale=torch.empty(batch, device="meta") if config["guidance_embeds"] else None,
        )

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        student = super().student_pipeline(pipeline, parts)
        student.default_sample_size = pipeline.default_sample_size
        return student


def packed(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h w / 4, 4 C), each a patch of 2x2."""
    return pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (B, h w / 4, 4 C) as latents (B, C, h, w) of `size`, the inverse of `packed`."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (size[0] // PATCH, size[1] // PATCH)), PATCH)
