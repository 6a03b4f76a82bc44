"""AuraFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions

MAX_TOKENS = 256  # per prompt
TIMESTEPS = 1000  # of the network's time, which is in [0, 1]


class AuraFlow(Family):
    """AuraFlow: an `AuraFlowTransformer2DModel` with joint attention to the states of a T5 that was trained on the Pile.

    The states of padding are zero, in place of a mask. The pipeline's default size is 1024 pixels for networks of any size, so
    that calls of other networks need a height and a width.
    """

    summary = "AuraFlow: a transformer with joint attention in latent space, with a T5 text encoder"
    pipelines = ("AuraFlowPipeline",)
    network_part = "transformer"
    default_guidance = 3.5
    prompt_encoders = ("text_encoder",)
    texts = guided = lora = True
    schedules = ("flow",)
    stores_size = False
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("linear_1", "linear_2", "out_projection", "proj_out"),
    )

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        """Raises ValueError for more patches than the network has learned positions for."""
        network, factor = self.network(pipeline), self.codec(pipeline).factor
        patches, max_patches = max(size) // (factor * network.config.patch_size), int(network.config.pos_embed_max_size**0.5)
        if patches > max_patches:
            max_edge = max_patches * factor * network.config.patch_size
            raise ValueError(f"the network has positions for {max_edge} pixels; expects at most these")
        super().set_size(pipeline, size)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _, _, _ = pipeline.encode_prompt(prompts, None, False, device=self.device(pipeline))
        return {"prompt_embeds": embeds}

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """The pipeline requires masks, which it does not use."""
        return super().sample(pipeline, _with_mask(conditions), _with_mask(unconditional), options)

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"])

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        return {
            "hidden_states": x_t,
            "timestep": (t / TIMESTEPS).to(dtype),
            "encoder_hidden_states": conditioning["prompt_embeds"].to(dtype),
        }

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        shape = (batch, MAX_TOKENS, config["joint_attention_dim"])
        return Conditioning(prompt_embeds=torch.empty(shape, dtype=dtype, device="meta"))


def _with_mask(conditions: Conditions) -> Conditions:
    """The conditions (B, ...) with masks (B, 1), if there are any conditions."""
    embeds = conditions.get("prompt_embeds")
    return conditions if embeds is None else {**conditions, "prompt_attention_mask": embeds.new_ones(len(embeds), 1)}
