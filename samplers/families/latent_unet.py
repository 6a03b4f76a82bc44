"""Unconditional latent diffusion (Rombach et al. 2022): a `UNet2DModel` in the latent space of a VQ autoencoder."""

from __future__ import annotations

from typing import Any

from diffusers import LDMPipeline
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.families.family import Conditions, SampleOptions
from gendistill.samplers.families.pixel_unet import Unconditional


class LatentUnconditional(Unconditional):
    """An unconditional `UNet2DModel` in latent space, which ignores prompts.

    Its pipeline passes no generator to the scheduler, so that a solver with fresh noise would not be reproducible.
    """

    summary = "Latent diffusion: a U-Net without conditions in the latent space of a VQ autoencoder"
    pipelines = ("LDMPipeline",)
    decoder_part = "vqvae"
    schedules = ("vp",)
    bounded = rectangles = False
    solvers = ("ddim",)

    def only_square(self, pipeline: Any) -> bool:
        return True

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        latents = self.denoised(pipeline, conditions, options)
        return latents if options.latent else self.codec(pipeline).decode(latents) / 2 + 0.5

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vqvae)

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        return LDMPipeline(**{**pipeline.components, **parts})
