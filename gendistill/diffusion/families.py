"""What training needs of each family of pipelines. One class a family; nothing else knows which families there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from gendistill.diffusion.codec import Codec, LatentCodec, PixelCodec
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import NetworkCall, call_unet_2d, call_unet_2d_condition
from gendistill.samplers import families as pipelines


class Family(ABC):
    """One kind of teacher, adapted at the door.

    Attributes:
        drawing: the same family where pictures are drawn.
        lora: whether diffusers loads a LoRA into its pipelines.
    """

    drawing: type[pipelines.Family]
    lora: bool

    @property
    @abstractmethod
    def call(self) -> NetworkCall:
        """How its network is called."""

    @abstractmethod
    def codec(self, pipeline: Any) -> Codec:
        """Between its pictures and the space that it diffuses in."""

    @abstractmethod
    def conditioning(self, encoded: dict[str, Tensor], size: tuple[int, int] | None) -> Conditioning:
        """What its network takes of conditions (B, ...) encoded by the pipeline, for pictures of (height, width).

        Without a size it says nothing of one.
        """

    def prompt_encoders(self, pipeline: Any) -> dict[str, nn.Module]:
        """The networks that encode prompts, by name."""
        return {}

    @abstractmethod
    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """The stock pipeline that a student is used by, with `parts` of its own and the other parts of the teacher's."""


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    drawing: type[pipelines.Family] = pipelines.StableDiffusion
    lora = True

    @property
    def call(self) -> NetworkCall:
        return call_unet_2d_condition

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded: dict[str, Tensor], size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(prompt_embeds=encoded["prompt_embeds"])

    def prompt_encoders(self, pipeline: Any) -> dict[str, nn.Module]:
        return {"text_encoder": pipeline.text_encoder}

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        return StableDiffusionPipeline(**{**pipeline.components, **parts}, requires_safety_checker=False)


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL, which is told the size and the crop of the picture as well (Podell et al. 2023, section 2.2)."""

    drawing = pipelines.StableDiffusionXL

    def conditioning(self, encoded: dict[str, Tensor], size: tuple[int, int] | None) -> Conditioning:
        """Original and target size are `size`, nothing is cropped: what the pipeline says by default."""
        embeds = encoded["prompt_embeds"]
        texts = Conditioning(prompt_embeds=embeds, pooled_embeds=encoded["pooled_prompt_embeds"])
        if size is None:
            return texts
        sizes = torch.tensor([*size, 0, 0, *size], dtype=embeds.dtype, device=embeds.device)
        return replace(texts, time_ids=sizes.repeat(len(embeds), 1))

    def prompt_encoders(self, pipeline: Any) -> dict[str, nn.Module]:
        return {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        zeros = pipeline.config.force_zeros_for_empty_prompt
        return StableDiffusionXLPipeline(**{**pipeline.components, **parts}, force_zeros_for_empty_prompt=zeros)


class Unconditional(Family):
    """A `UNet2DModel` in pixel space without any condition."""

    drawing: type[pipelines.Family] = pipelines.Unconditional
    lora = False

    @property
    def call(self) -> NetworkCall:
        return call_unet_2d

    def codec(self, pipeline: Any) -> Codec:
        return PixelCodec()

    def conditioning(self, encoded: dict[str, Tensor], size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(**encoded)

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """`DDPMPipeline` runs any of our solvers; `DDIMPipeline` would replace LCM's by its own."""
        return DDPMPipeline(**{**pipeline.components, **parts})


class ClassConditional(Unconditional):
    """A `UNet2DModel` in pixel space that takes a class."""

    drawing = pipelines.ClassConditional

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """`ConsistencyModelPipeline` is the stock pipeline that gives a `UNet2DModel` class labels."""
        return ConsistencyModelPipeline(**{**pipeline.components, **parts})


FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Unconditional(), ClassConditional())


def family_called(pipeline_class: str) -> Family:
    """The first family that has pipelines of diffusers' class of that name."""
    return next(family for family in FAMILIES if pipeline_class in family.drawing.pipelines)


def family_of(pipeline: Any) -> Family:
    """The family that an opened pipeline belongs to."""
    found = pipelines.family_of(pipeline)
    return next(family for family in FAMILIES if family.drawing is type(found))
