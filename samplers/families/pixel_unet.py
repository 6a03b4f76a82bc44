"""Pixel-space models: an unconditional or a class-conditional `UNet2DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline
from torch import Tensor

from gendistill.samplers.codec import Codec, PixelCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions


class Unconditional(Family):
    """An unconditional `UNet2DModel` in pixel space, which ignores prompts."""

    summary = "A U-Net in pixel space without conditions"
    pipelines = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
    bounded = True
    task = "unconditional-image-generation"
    example = "pipeline(num_inference_steps={steps})"

    def supports(self, pipeline: Any) -> bool:
        return super().supports(pipeline) and self.network(pipeline).config.num_class_embeds is None

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        return {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        return [""]

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """Sample by `ConsistencyModelPipeline`, a stock pipeline that supports class labels, all our solvers and any dtype."""
        stock: Any = ConsistencyModelPipeline(self.network(pipeline), pipeline.scheduler)
        stock.set_progress_bar_config(disable=True)
        images = stock(
            batch_size=len(options.generators),
            **conditions,
            num_inference_steps=options.num_inference_steps,
            generator=options.generators,
            output_type="pt",
            return_dict=False,
            **options.arguments,
        )[0]
        return images * 2 - 1 if options.latent else images

    def codec(self, pipeline: Any) -> Codec:
        return PixelCodec()

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(**encoded)

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        labels = {name: conditioning[name] for name in ("class_labels",) if name in conditioning}
        return {"sample": x_t, "timestep": t, **labels}

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning()

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """A `DDPMPipeline`, which supports all our solvers; `DDIMPipeline` would replace LCM's scheduler by its own."""
        return DDPMPipeline(**{**pipeline.components, **parts})


class ClassConditional(Unconditional):
    """A class-conditional `UNet2DModel` in pixel space; a prompt is the number of a class, as text."""

    summary = "A U-Net in pixel space with a class, such as a published consistency model"
    example = "pipeline(class_labels=0, num_inference_steps={steps})"

    def supports(self, pipeline: Any) -> bool:
        return Family.supports(self, pipeline) and self.network(pipeline).config.num_class_embeds is not None

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        classes = self.network(pipeline).config.num_class_embeds
        for prompt in prompts:
            if not (prompt.isdecimal() and int(prompt) < classes):
                raise ValueError(f"prompt {prompt!r}: the model expects the number of a class, from 0 to {classes - 1}")
        return {"class_labels": torch.tensor([int(prompt) for prompt in prompts], device=self.device(pipeline))}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        return [str(number) for number in range(self.network(pipeline).config.num_class_embeds)]

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(class_labels=torch.empty(batch, dtype=torch.int64, device="meta"))

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """A `ConsistencyModelPipeline`, the stock pipeline that passes class labels to a `UNet2DModel`."""
        return ConsistencyModelPipeline(**{**pipeline.components, **parts})
