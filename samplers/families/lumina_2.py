"""Lumina-Image 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family

MAX_TOKENS = 256  # per prompt, with the system prompt
TIMESTEPS = 1000  # of the network's time, which is 1 for images and 0 for noise


class FullMask(Tensor):
    """A mask (B, L) on the meta device that keeps all tokens: the network reads the numbers of tokens on the host."""

    def sum(self, dim: int) -> Tensor:  # type: ignore[override]
        return torch.full((len(self),), self.shape[1], device="cpu")


class Lumina2(Family):
    """Lumina-Image 2.0 (Qin et al. 2025): a `Lumina2Transformer2DModel` of joint attention to the inner states of a Gemma 2.

    The network predicts x_0 - eps, and its time runs from noise to images. The pipeline prepends a system prompt to prompts,
    but not to the unconditional one.
    """

    summary = "Lumina-Image 2.0: a transformer with joint attention in latent space, with a Gemma text encoder"
    pipelines = ("Lumina2Pipeline",)
    network_part = "transformer"
    default_guidance = 4.0
    prompt_encoders = ("text_encoder",)
    texts = guided = normalizes_guidance = passes_sigmas = lora = True
    schedules = ("flow",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "linear_3")
    cache_dtype = torch.bfloat16  # inner states of Gemma are not normalised, and exceed the range of float16

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, False, device=self.device(pipeline))
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def unconditional(self, pipeline: Any) -> Conditions:
        _, _, embeds, mask = pipeline.encode_prompt([""], True, device=self.device(pipeline))
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae, pipeline.vae.config.shift_factor)

    def image_tokens(self, config: Mapping[str, Any], size: tuple[int, int]) -> int:
        """The number of channels, from which the pipeline computes a dynamic shift."""
        return int(config["in_channels"])

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"], prompt_mask=encoded["prompt_attention_mask"])

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        mask = conditioning["prompt_mask"]
        return {
            "hidden_states": x_t,
            "timestep": 1 - t / TIMESTEPS,
            "encoder_hidden_states": conditioning["prompt_embeds"].to(dtype),
            "encoder_attention_mask": mask.as_subclass(FullMask) if mask.is_meta else mask,
        }

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return -super().call(network, x_t, t, conditioning)

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(
            prompt_embeds=torch.empty(batch, MAX_TOKENS, config["cap_feat_dim"], dtype=dtype, device="meta"),
            prompt_mask=torch.empty(batch, MAX_TOKENS, dtype=torch.int64, device="meta"),
        )
