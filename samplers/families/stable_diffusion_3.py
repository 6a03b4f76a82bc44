"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from torch.nn.functional import pad

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.samplers.families.repeated_tokens import knows_repeated_tokens
from gendistill.samplers.layouts.sd3_layout import StableDiffusion3Layout

CLIP_TOKENS, T5_TOKENS = 77, 256  # per prompt, in the pipeline's calls
# without T5, earlier versions of diffusers have as many zeros as tokens of CLIP
EARLIER = (
    "tokenizer_max_length" in inspect.getsource(StableDiffusion3Pipeline._get_t5_prompt_embeds).partition("text_inputs")[0]
)


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5 (Esser et al. 2024): a `SD3Transformer2DModel` on the tokens of two CLIPs and of a T5.

    A pipeline without T5 has zeros in place of T5's tokens. The conditions are without them, and the network computes them as
    one token (`repeated_tokens`), unless its attention has other processors than diffusers' own.
    """

    summary = "Stable Diffusion 3 and 3.5: a transformer trained by flow matching, with two CLIPs and an optional T5"
    pipelines = ("StableDiffusion3Pipeline",)
    network_part = "transformer"
    prompt_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional_encoders = ("text_encoder_3",)
    texts = guided = lora = True
    original_layout = StableDiffusion3Layout()
    schedules = ("flow",)
    default_guidance = 7.0
    lora_targets = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    # T5's last layer normalises its states to at most sqrt(width) times a weight, far below 65504; bfloat16 would round CLIP's
    cache_dtype = torch.float16

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        limit = self.network(pipeline).config.pos_embed_max_size * self.size_multiple(pipeline)
        if max(size) > limit:
            raise ValueError(f"expects at most {limit} pixels, for which the network has positions")
        super().set_size(pipeline, size)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, self.device(pipeline), 1, False)
        tokens = pipeline.tokenizer_max_length
        t5 = {} if pipeline.text_encoder_3 is None else {"t5_embeds": embeds[:, tokens:]}
        return {"prompt_embeds": embeds[:, :tokens], **t5, "pooled_prompt_embeds": pooled}

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        if not hasattr(pipeline, "controlnet") and _computes_one_zero(self.network(pipeline), conditions):
            conditions, unconditional = _with_one_zero(conditions), _with_one_zero(unconditional) if unconditional else {}
            repeats = {"joint_attention_kwargs": {"repeats": _zeros(conditions)}}
            options = replace(options, arguments={**repeats, **options.arguments})
        unconditional = _arguments(unconditional) if unconditional else {}
        return super().sample(pipeline, _arguments(conditions), unconditional, options)

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae, pipeline.vae.config.get("shift_factor") or 0.0)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(
            prompt_embeds=encoded["prompt_embeds"],
            t5_embeds=encoded.get("t5_embeds"),
            pooled_embeds=encoded["pooled_prompt_embeds"],
        )

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        """A T5 of one token stands for all zeros, see `call`."""
        t5 = conditioning.get("t5_embeds")
        return {
            "hidden_states": x_t,
            "timestep": t,
            # first in `dtype`, as autocast to bfloat16 joins no tensors in float16
            "encoder_hidden_states": _all_tokens({name: states.to(dtype) for name, states in conditioning.items()}),
            "pooled_projections": conditioning["pooled_embeds"].to(dtype),
            **({} if t5 is None or t5.shape[1] > 1 else {"joint_attention_kwargs": {"repeats": _zeros(conditioning)}}),
        }

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        if _computes_one_zero(network, conditioning):
            conditioning = Conditioning(**_with_one_zero(conditioning))
        return super().call(network, x_t, t, conditioning)

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        width = config["joint_attention_dim"]
        return Conditioning(
            prompt_embeds=torch.empty(batch, CLIP_TOKENS, width, dtype=dtype, device="meta"),
            t5_embeds=torch.empty(batch, T5_TOKENS, width, dtype=dtype, device="meta"),
            pooled_embeds=torch.empty(batch, config["pooled_projection_dim"], dtype=dtype, device="meta"),
        )


def _computes_one_zero(network: Any, conditions: Mapping[str, Tensor]) -> bool:
    return "t5_embeds" not in conditions and knows_repeated_tokens(network)


def _with_one_zero(conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**conditions, "t5_embeds": torch.zeros_like(conditions["prompt_embeds"][:, :1])}


def _all_tokens(conditions: Mapping[str, Tensor]) -> Tensor:
    """The tokens (B, L, D) of CLIP and T5, zeros without T5."""
    clip, t5 = conditions["prompt_embeds"], conditions.get("t5_embeds")
    return pad(clip, (0, 0, 0, _zeros(conditions))) if t5 is None else torch.cat([clip, t5], dim=1)


def _zeros(conditions: Mapping[str, Tensor]) -> int:
    """Number of zeros in place of T5's tokens."""
    return conditions["prompt_embeds"].shape[1] if EARLIER else T5_TOKENS


def _arguments(conditions: Conditions) -> dict[str, Tensor]:
    return {"prompt_embeds": _all_tokens(conditions), "pooled_prompt_embeds": conditions["pooled_prompt_embeds"]}
