"""The families of stock pipelines: what each makes of prompts, and how it is asked for pictures. One class a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline
from torch import Generator, Tensor

Conditions = dict[str, Tensor]


class Family(ABC):
    """One kind of diffusers pipeline.

    All that draws speaks of prompts, whatever a family makes of them: a text, the number of a class, or nothing.

    Attributes:
        pipelines: diffusers' names of the pipelines that belong to it.
        network_part: the component that is distilled, by its name in the pipeline.
        texts: whether its prompts are texts; otherwise it knows all its prompts by itself (`own_prompts`).
        guided: whether it knows classifier-free guidance.
        bounded: whether it diffuses pictures, which lie in [-1, 1], rather than latents.
        takes_eta: whether its pipelines are called with `eta`; the others leave it to the scheduler's own default.
        task: the hub's word for what it does.
        example: how its pipelines are called, as code with {steps}, {scale} and {eta}.
    """

    pipelines: tuple[str, ...]
    network_part = "unet"
    texts = guided = bounded = takes_eta = False
    task: str
    example: str

    def takes(self, pipeline: Any) -> bool:
        return type(pipeline).__name__ in self.pipelines

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        """Tensors (B, ...) by the names that the pipeline takes them under.

        Raises:
            ValueError: a prompt means nothing to the pipeline.
        """

    def unconditional(self, pipeline: Any) -> Conditions:
        """Tensors (1, ...) that the other branch of guidance takes; none where there is no guidance."""
        return {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        """All prompts that there are; None where any text is one."""
        return None

    @abstractmethod
    def draw(
        self,
        pipeline: Any,
        conditions: Conditions,
        unconditional: Conditions,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        eta: float,
        generators: list[Generator],
        latent: bool,
        **given: Any,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], or what diffusion works on (B, C, h, w); picture k by generator k alone.

        Args:
            conditions: of B pictures, from `encode`.
            unconditional: from `unconditional`; used where `guidance_scale` is above 1.
            eta: the share of fresh noise in a step, where the pipeline takes one.
            given: what else the pipeline is called with.
        """


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    pipelines = ("StableDiffusionPipeline",)
    texts = guided = takes_eta = True
    task = "text-to-image"
    example = 'pipeline("a prompt", num_inference_steps={steps}, guidance_scale={scale:g}{eta})'

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _ = pipeline.encode_prompt(prompts, device_of(pipeline), 1, False)
        return {"prompt_embeds": embeds}

    def unconditional(self, pipeline: Any) -> Conditions:
        return self.encode(pipeline, [""])

    def draw(
        self,
        pipeline: Any,
        conditions: Conditions,
        unconditional: Conditions,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        eta: float,
        generators: list[Generator],
        latent: bool,
        **given: Any,
    ) -> Tensor:
        negative = {f"negative_{name}": t.expand(len(generators), *t.shape[1:]) for name, t in unconditional.items()}
        return pipeline(
            **conditions,
            **(negative if guidance_scale > 1 else {}),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generators,
            output_type="latent" if latent else "pt",
            return_dict=False,
            **given,
        )[0]


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL: two text encoders, of which the second also gives a pooled embedding."""

    pipelines = ("StableDiffusionXLPipeline",)

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, device_of(pipeline), 1, False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def unconditional(self, pipeline: Any) -> Conditions:
        """What the pipeline takes without a negative prompt: zeros where its config says so, as that of SDXL does."""
        _, embeds, _, pooled = pipeline.encode_prompt("", None, device_of(pipeline), 1, True)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


class Unconditional(Family):
    """A `UNet2DModel` in pixel space without any condition: a prompt means nothing."""

    pipelines = ("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline")
    bounded = True
    task = "unconditional-image-generation"
    example = "pipeline(num_inference_steps={steps})"

    def takes(self, pipeline: Any) -> bool:
        return super().takes(pipeline) and pipeline.unet.config.num_class_embeds is None

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        return {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        return [""]

    def draw(
        self,
        pipeline: Any,
        conditions: Conditions,
        unconditional: Conditions,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        eta: float,
        generators: list[Generator],
        latent: bool,
        **given: Any,
    ) -> Tensor:
        """By `ConsistencyModelPipeline`, the stock pipeline that takes class labels, any of our solvers and any dtype."""
        drawing: Any = ConsistencyModelPipeline(pipeline.unet, pipeline.scheduler)
        drawing.set_progress_bar_config(disable=True)
        pictures = drawing(
            batch_size=len(generators),
            **conditions,
            num_inference_steps=num_inference_steps,
            generator=generators,
            output_type="pt",
            return_dict=False,
            **given,
        )[0]
        return pictures * 2 - 1 if latent else pictures


class ClassConditional(Unconditional):
    """A `UNet2DModel` in pixel space that takes a class: a prompt is its number, as text."""

    example = "pipeline(class_labels=0, num_inference_steps={steps})"

    def takes(self, pipeline: Any) -> bool:
        return Family.takes(self, pipeline) and pipeline.unet.config.num_class_embeds is not None

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        classes = pipeline.unet.config.num_class_embeds
        for prompt in prompts:
            if not (prompt.isdecimal() and int(prompt) < classes):
                raise ValueError(f"prompt {prompt!r}: the model takes the number of a class, from 0 to {classes - 1}")
        return {"class_labels": torch.tensor([int(prompt) for prompt in prompts], device=device_of(pipeline))}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        return [str(number) for number in range(pipeline.unet.config.num_class_embeds)]


FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Unconditional(), ClassConditional())
PIPELINES = tuple(dict.fromkeys(name for family in FAMILIES for name in family.pipelines))


def family_of(pipeline: Any) -> Family:
    """The family that an opened pipeline belongs to; ValueError where it belongs to none."""
    require_supported("opened", type(pipeline).__name__)
    return next(family for family in FAMILIES if family.takes(pipeline))


def network_of(pipeline: Any) -> Any:
    """The component of an opened pipeline that is distilled: its U-Net or transformer."""
    return getattr(pipeline, family_of(pipeline).network_part)


def require_supported(source: object, pipeline_class: str) -> None:
    """Raise ValueError, with all that are supported, where pipelines of that class belong to no family."""
    if pipeline_class not in PIPELINES:
        raise ValueError(f"model {source}: family {pipeline_class} is not supported; takes {', '.join(PIPELINES)}")


def device_of(pipeline: Any) -> torch.device:
    """Where a pipeline's networks compute.

    Where none is offloaded it is where the weights are: diffusers looks at every module for it, which takes longer than to
    encode a prompt by a small model.
    """
    parts = (pipeline.unet, getattr(pipeline, "text_encoder", None))
    if any(hasattr(part, hook) for part in parts for hook in ("_hf_hook", "_diffusers_hook")):
        return torch.device(pipeline._execution_device)
    return next(pipeline.unet.parameters()).device
