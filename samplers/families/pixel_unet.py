"""Pixel-space models: an unconditional or a class-conditional `UNet2DModel` of grey, RGB or RGBA images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline, DDPMPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from gendistill.samplers.codec import Codec, PixelCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.schedulers import is_edm, sigma_data_of


class Unconditional(Family):
    """An unconditional `UNet2DModel` in pixel space, which ignores prompts."""

    summary = "A U-Net in pixel space without conditions"
    pipelines: tuple[str, ...] = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
    schedules: tuple[str, ...] = ("vp", "edm")
    bounded = rectangles = True
    pads = False
    task = "unconditional-image-generation"
    example = "pipeline(num_inference_steps={steps})"

    def supports(self, pipeline: Any) -> bool:
        return super().supports(pipeline) and self.network(pipeline).config.num_class_embeds is None

    def only_square(self, pipeline: Any) -> bool:
        return is_edm(pipeline.scheduler)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        return {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        return [""]

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """Sample as the stock pipelines do, of which none has class labels, other sizes than squares and a learned variance."""
        images = (self.denoised(pipeline, conditions, options) / 2 + 0.5).clamp(0, 1)
        codec: Any = self.codec(pipeline)  # of pixels
        return images * 2 - 1 if options.latent else codec.rgb(images)

    @torch.no_grad()
    def denoised(self, pipeline: Any, conditions: Conditions, options: SampleOptions) -> Tensor:
        """The end (B, C, h, w) of the sampling loop from noise, by the pipeline's scheduler."""
        network, scheduler = self.network(pipeline), pipeline.scheduler
        shape = (len(options.generators), *self.codec(pipeline).latent_shape(self.size(pipeline)))
        x_t = randn_tensor(shape, options.generators, self.device(pipeline), network.dtype) * scheduler.init_noise_sigma
        scheduler.set_timesteps(options.num_inference_steps)
        accepts_generator = "generator" in inspect.signature(scheduler.step).parameters
        random = {"generator": options.generators} if accepts_generator else {}
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x_t, t), t, **conditions).sample
            output = output if uses_variance(scheduler) else output[:, : shape[1]]
            x_t = scheduler.step(output, t, x_t, **random, return_dict=False)[0]
        return x_t

    def codec(self, pipeline: Any) -> Codec:
        return PixelCodec(self.network(pipeline).config.in_channels, sigma_data_of(pipeline.scheduler))

    def prepare_teacher(self, pipeline: Any) -> None:
        """Remove the learned variance (Nichol & Dhariwal 2021, equation 15), as many channels as the prediction's, from the
        network: the schedulers of few-step students do not read it."""
        network = self.network(pipeline)
        channels = network.config.in_channels
        if network.config.out_channels != 2 * channels:
            return
        layer = network.conv_out
        layer.weight, layer.bias = (nn.Parameter(tensor[:channels].clone()) for tensor in (layer.weight, layer.bias))
        layer.out_channels = channels
        network.register_to_config(out_channels=channels)
        if uses_variance(pipeline.scheduler):
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, variance_type="fixed_small")

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
        """A `DDPMPipeline`, which supports all our solvers; `DDIMPipeline` would replace LCM's scheduler by its own.

        With EDM it is a `ConsistencyModelPipeline`, which scales the network's input.
        """
        kind: Any = ConsistencyModelPipeline if is_edm(pipeline.scheduler) else DDPMPipeline
        return kind(**{**pipeline.components, **parts})


def uses_variance(scheduler: Any) -> bool:
    """Whether a scheduler reads a learned variance from the network's output."""
    return type(scheduler).__name__ == "DDPMScheduler" and str(scheduler.config.variance_type).startswith("learned")


class ClassConditional(Unconditional):
    """A class-conditional `UNet2DModel` in pixel space; a prompt is the number of a class, as text."""

    summary = "A U-Net in pixel space with a class, such as a published consistency model"
    example = "pipeline(class_labels=0, num_inference_steps={steps})"

    def supports(self, pipeline: Any) -> bool:
        return Family.supports(self, pipeline) and self.network(pipeline).config.num_class_embeds is not None

    def only_square(self, pipeline: Any) -> bool:
        return True

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
