"""Sana."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family

MAX_TOKENS = 300  # per prompt
SIZE_MULTIPLE = 32  # of images, which the pipeline requires


class Sana(Family):
    """Sana (Xie et al. 2024): a `SanaTransformer2DModel` of linear attention, in the latent space of a deep-compression
    autoencoder, with cross-attention to the states of a Gemma 2.

    The pipeline prepends an instruction to each prompt, but not to the unconditional one. Its default size is 1024 pixels for
    networks of any size, so that calls of other networks need a height and a width.
    """

    summary = "Sana: a transformer of linear attention in the latent space of a 32x autoencoder, with a Gemma text encoder"
    pipelines = ("SanaPipeline",)
    network_part = "transformer"
    default_guidance = 4.5
    prompt_encoders = ("text_encoder",)
    texts = guided = lora = True
    schedules = ("flow",)
    stores_size = False
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "linear_1", "linear_2", "conv_inverted", "conv_point", "proj_out")
    call_arguments: Mapping[str, Any] = {"negative_prompt": None, "use_resolution_binning": False}

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        """Keeps the network's positions: diffusers computes them from `sample_size` when a network is opened."""
        network, sample_size = self.network(pipeline), size[0] // self.codec(pipeline).factor
        if size[0] == size[1] and network.patch_embed.pos_embed is not None:
            own = network.patch_embed.base_size * network.config.patch_size
            network.register_to_config(interpolation_scale=network.patch_embed.interpolation_scale * sample_size / own)
        super().set_size(pipeline, size)

    def size_multiple(self, pipeline: Any) -> int:
        return math.lcm(SIZE_MULTIPLE, super().size_multiple(pipeline))

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        """Encode prompts after the instruction of the pipeline's call."""
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return _encoded(pipeline, self.device(pipeline), prompts, instruction)

    def unconditional(self, pipeline: Any) -> Conditions:
        return _encoded(pipeline, self.device(pipeline), [""], None)

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"], prompt_mask=encoded["prompt_attention_mask"])

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        return {
            "hidden_states": x_t,
            "timestep": t * config["timestep_scale"],
            "encoder_hidden_states": conditioning["prompt_embeds"].to(dtype),
            "encoder_attention_mask": conditioning["prompt_mask"],
        }

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(
            prompt_embeds=torch.empty(batch, MAX_TOKENS, config["caption_channels"], dtype=dtype, device="meta"),
            prompt_mask=torch.empty(batch, MAX_TOKENS, dtype=torch.int64, device="meta"),
        )


def _encoded(pipeline: Any, device: torch.device, prompts: list[str], instruction: list[str] | None) -> Conditions:
    embeds, mask, _, _ = pipeline.encode_prompt(prompts, False, device=device, complex_human_instruction=instruction)
    return {"prompt_embeds": embeds, "prompt_attention_mask": mask}
