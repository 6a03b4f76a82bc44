"""PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions

MAX_TOKENS = 300  # per prompt in PixArt-Sigma; 120 in PixArt-alpha


class PixArt(Family):
    """PixArt-alpha (Chen et al. 2024) and PixArt-Sigma: a `PixArtTransformer2DModel` with cross-attention to states of a T5.

    Half of the output channels are a learned variance, which the pipelines do not use. Diffusers loads no LoRA into them.

    Networks for images of 1024 pixels may have the images' height, width and aspect ratio as conditions; the pipeline passes
    these where the network's `sample_size` is 128, so that such a network has no other default size.
    """

    summary = "PixArt-alpha and PixArt-Sigma: a transformer in latent space with a T5 text encoder"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    network_part = "transformer"
    default_guidance = 4.5
    prompt_encoders = ("text_encoder",)
    texts = guided = accepts_eta = True
    call_arguments: Mapping[str, Any] = {"negative_prompt": None, "use_resolution_binning": False}

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        """Keeps the network's positions: diffusers computes them from `sample_size` when a network is opened.

        Raises:
            ValueError: the network has the size of the images as a condition.
        """
        network, sample_size = self.network(pipeline), size[0] // self.codec(pipeline).factor
        if network.use_additional_conditions:
            kind, own = type(pipeline).__name__, self.size(pipeline)[0]
            raise ValueError(f"a {kind} passes the image size to networks for {own} pixels only; expects {own}")
        if size[0] != size[1]:
            return
        scale = network.pos_embed.interpolation_scale * sample_size / (network.pos_embed.base_size * network.config.patch_size)
        network.register_to_config(use_additional_conditions=False, interpolation_scale=scale)
        super().set_size(pipeline, size)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        """The prompts are cleaned as in a call of the pipeline, which needs BeautifulSoup and ftfy."""
        cleans = is_bs4_available() and is_ftfy_available()
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, False, device=self.device(pipeline), clean_caption=cleans)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        try:
            return super().sample(pipeline, conditions, unconditional, options)
        except IndexError as error:  # for one step the pipeline of PixArt-alpha expects a scheduler that also returns x_0
            if options.num_inference_steps > 1:
                raise
            scheduler = type(pipeline.scheduler).__name__
            raise ValueError(f"steps 1: a {type(pipeline).__name__} with {scheduler} expects at least 2") from error

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        embeds, sizes = encoded["prompt_embeds"], None
        if size is not None:
            row = torch.tensor([*size, size[0] / size[1]], dtype=torch.float32, device=embeds.device)
            sizes = row.repeat(len(embeds), 1)
        return Conditioning(prompt_embeds=embeds, prompt_mask=encoded["prompt_attention_mask"], sizes=sizes)

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        has_size = config["use_additional_conditions"]
        if has_size is None:
            has_size = config["sample_size"] == 128  # as in diffusers
        sizes = conditioning["sizes"].to(dtype) if has_size else None
        return {
            "hidden_states": x_t,
            "timestep": t,
            "encoder_hidden_states": conditioning["prompt_embeds"].to(dtype),
            "encoder_attention_mask": conditioning["prompt_mask"],
            "added_cond_kwargs": {
                "resolution": None if sizes is None else sizes[:, :2],
                "aspect_ratio": None if sizes is None else sizes[:, 2:],
            },
        }

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(
            prompt_embeds=torch.empty(batch, MAX_TOKENS, config["caption_channels"], dtype=dtype, device="meta"),
            prompt_mask=torch.empty(batch, MAX_TOKENS, dtype=torch.int64, device="meta"),
            sizes=torch.empty(batch, 3, device="meta"),
        )
