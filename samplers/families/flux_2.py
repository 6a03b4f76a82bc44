"""Flux.2 klein and Flux.2 dev."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import GUIDANCE_SCALE, Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.samplers.families.flux import PATCH, Flux
from gendistill.samplers.precision import in_own_precision
from gendistill.schedulers import NoiseSchedule

TEXT_TOKENS = 512  # per prompt, in the pipelines' calls
MANY_STEPS = 50  # the pipelines' default; their shift changes with the number of steps, and the teacher has that of this one


class Flux2Klein(Flux):
    """Flux.2 klein base: a `Flux2Transformer2DModel` with classifier-free guidance, on the states of a Qwen3.

    The latents are patches of 2x2 latents of the VAE, normalised by the VAE's batch norm: one token each.
    """

    summary = "Flux.2 klein base: a transformer trained by flow matching, with the inner states of a Qwen3 as prompts"
    pipelines: tuple[str, ...] = ("Flux2KleinPipeline",)
    prompt_encoders = ("text_encoder",)
    original_layout = None
    guided, guidance_input = True, False
    default_guidance = 4.0
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        "attn.to_qkv_mlp_proj",
    )
    example = 'pipeline(prompt="a prompt", num_inference_steps={steps}, guidance_scale={scale:g}{eta})'
    cache_dtype = torch.bfloat16  # inner states of a language model are not normalised, and exceed the range of float16

    def refusal(self, pipeline: Any) -> str | None:
        if not pipeline.config.get("is_distilled"):
            return None
        return "it is a few-step student itself (is_distilled in its model_index.json); expects a Flux.2 klein base"

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _ = pipeline.encode_prompt(prompts, self.device(pipeline), max_sequence_length=TEXT_TOKENS)
        return {"prompt_embeds": embeds}

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        output = Family.sample(self, pipeline, conditions, unconditional, options)
        if not options.latent:
            return output
        if output.ndim == 4:  # of klein: those of the VAE
            codec: Any = self.codec(pipeline)
            return codec.scaled(pixel_unshuffle(output, PATCH))
        height, width = self._latent_size(pipeline, options)
        return output.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))

    def codec(self, pipeline: Any) -> Codec:
        norm = pipeline.vae.bn
        std = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt()
        return LatentCodec(pipeline.vae, norm.running_mean.tolist(), std.tolist(), patch=PATCH)

    def image_tokens(self, config: Mapping[str, Any], size: tuple[int, int]) -> int:
        return size[0] * size[1]

    def noise_schedule(self, scheduler: Any, config: Mapping[str, Any], size: tuple[int, int]) -> NoiseSchedule:
        """The schedule with the shift of the pipelines, which is their own function of tokens and steps."""
        schedule = super().noise_schedule(scheduler, config, size)
        if not scheduler.config.get("use_dynamic_shifting"):
            return schedule
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu  # not in all versions of diffusers

        return replace(schedule, shift=math.exp(compute_empirical_mu(self.image_tokens(config, size), MANY_STEPS)))

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"])

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        return config["in_channels"], config["out_channels"] or config["in_channels"]

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        states = conditioning["prompt_embeds"].to(dtype)
        rows, columns, tokens = (torch.arange(n, device=x_t.device) for n in (*x_t.shape[2:], states.shape[1]))
        zero = torch.zeros_like(tokens[:1])
        inputs = {
            "hidden_states": x_t.flatten(2).transpose(1, 2),
            "timestep": t.to(dtype) / 1000,
            "encoder_hidden_states": states,
            "img_ids": torch.cartesian_prod(zero, rows, columns, zero),
            "txt_ids": torch.cartesian_prod(zero, zero, zero, tokens),
        }
        if config["guidance_embeds"]:
            scale = conditioning.get(GUIDANCE_SCALE)
            inputs["guidance"] = torch.full_like(t, self.default_guidance) if scale is None else scale
        return inputs

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = next(network.parameters()).dtype
        with in_own_precision(dtype, x_t.device.type):
            output = network(**self.network_inputs(network.config, x_t.to(dtype), t, conditioning, dtype)).sample
        return output.transpose(1, 2).unflatten(2, x_t.shape[2:])

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        shape = (batch, TEXT_TOKENS, config["joint_attention_dim"])
        scale = torch.empty(batch, device="meta") if config["guidance_embeds"] else None
        return Conditioning(prompt_embeds=torch.empty(shape, dtype=dtype, device="meta"), guidance_scale=scale)


class Flux2(Flux2Klein):
    """Flux.2 dev, which has the guidance scale as an input, on the states of a Mistral 3."""

    summary = "Flux.2 dev: a transformer trained by flow matching, with guidance as an input and a Mistral 3"
    pipelines = ("Flux2Pipeline",)
    guided, guidance_input = False, True
