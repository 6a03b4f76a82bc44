"""Tasks of diffusers' pipelines with inputs in addition to the prompt: image-to-image, inpainting, ControlNet, IP-Adapter."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from gendistill.schedulers.noise import is_flow


@dataclass(frozen=True)
class Task:
    """The inputs of a call in addition to the prompts, one row per prompt.

    Attributes:
        images: (N, 3, H, W) in [0, 1], initial images in place of noise.
        masks: (N, 1, H, W), 1 in the region to inpaint; None: the full image.
        strength: fraction of the steps that are run, in (0, 1]; 1 keeps little of the image.
        controls: (N, 3, H, W) in [0, 1], inputs of `controlnet`; `control_scale`: its conditioning scale.
        controlnet: a diffusers `ControlNetModel`, `SD3ControlNetModel` or `FluxControlNetModel`.
        styles: N images for the pipeline's loaded IP-Adapter (`pipeline.load_ip_adapter`). These are sampled with batch size 1,
            as diffusers applies all styles of a batch to each of its prompts.
    """

    images: Tensor | None = None
    masks: Tensor | None = None
    strength: float = 0.8
    controlnet: Any = None
    controls: Tensor | None = None
    control_scale: float = 1.0
    styles: Sequence[Any] | None = field(default=None)

    def require(self, count: int, steps: int) -> None:
        """Raise ValueError if the task does not fit the number of prompts or of steps."""
        rows = {"images": self.images, "masks": self.masks, "controls": self.controls, "styles": self.styles}
        for name, values in rows.items():
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: {len(values)} for {count} prompts; expects one per prompt")
        if self.masks is not None and self.images is None:
            raise ValueError("masks: expects images to inpaint")
        if (self.controls is None) != (self.controlnet is None):
            raise ValueError("controlnet and controls: expects both or neither")
        if self.images is None:
            return
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength:g}: expects more than 0 and at most 1")
        if int(steps * self.strength) < 1:
            raise ValueError(
                f"strength {self.strength:g}: none of {steps} step{'s' if steps != 1 else ''} is run; expects at least "
                f"{min_strength(steps):g}"
            )

    def calls(self, steps: int) -> int:
        """Number of steps that are run."""
        return steps if self.images is None else min(int(steps * self.strength), steps)

    def pipeline(self, pipeline: Any) -> Any:
        """The stock pipeline for this task, with the parts of `pipeline`.

        Raises:
            ValueError: diffusers has none.
        """
        # imported here because they import every pipeline that diffusers has
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

        kind: Any
        if self.masks is not None:
            kind = AutoPipelineForInpainting
        else:
            kind = AutoPipelineForText2Image if self.images is None else AutoPipelineForImage2Image
        refused = f"diffusers has no pipeline for {self.name} with a {type(pipeline).__name__}; expects another task"
        try:
            task_pipeline = kind.from_pipe(pipeline, **({} if self.controlnet is None else {"controlnet": self.controlnet}))
        except ValueError as error:  # from classes that it does not list
            raise ValueError(refused) from error
        if self.arguments(slice(0, 0), task_pipeline).keys() - inspect.signature(task_pipeline.__call__).parameters.keys():
            raise ValueError(refused)
        if hasattr(pipeline, "default_sample_size"):  # of a pipeline that was built with it
            task_pipeline.default_sample_size = pipeline.default_sample_size
        if self.images is not None and is_flow(scheduler := pipeline.scheduler) and not hasattr(scheduler, "scale_noise"):
            renoises = str(scheduler.config.algorithm_type).startswith("sde")
            stock: Any = FlowMatchLCMScheduler if renoises else FlowMatchEulerDiscreteScheduler
            task_pipeline.scheduler = stock(scheduler.config.num_train_timesteps, scheduler.config.flow_shift)
        task_pipeline.set_progress_bar_config(disable=True)
        return task_pipeline

    @property
    def name(self) -> str:
        """The name of the task, for messages."""
        base = "text-to-image" if self.images is None else "image-to-image" if self.masks is None else "inpainting"
        return base if self.controlnet is None else f"{base} with a ControlNet"

    def arguments(self, rows: slice, pipeline: Any) -> dict[str, Any]:
        """The additional arguments of that pipeline's call, for these rows."""
        arguments: dict[str, Any] = {}
        if self.images is not None:
            arguments |= {"image": self.images[rows], "strength": self.strength}
        if self.masks is not None:
            arguments["mask_image"] = self.masks[rows]
        if self.controls is not None:
            separate = "control_image" in inspect.signature(pipeline.__call__).parameters
            arguments["control_image" if separate else "image"] = self.controls[rows]
            arguments["controlnet_conditioning_scale"] = self.control_scale
        if self.styles is not None:
            arguments["ip_adapter_image"] = list(self.styles[rows])
        return arguments


def grid_arguments(pipeline: Any, original: Any, steps: int) -> dict[str, Any]:
    """The arguments with which `Task.pipeline` of an original pipeline samples on the same grid of timesteps.

    Pipelines of Stable Diffusion 3 for images expect a `FlowMatchEulerDiscreteScheduler`, which samples as DPM-Solver of first
    order does, or a `FlowMatchLCMScheduler` in place of its SDE solver. These have the trailing grid only if the sigmas, before
    their shift, are passed.
    """
    if pipeline.scheduler is original.scheduler or "sigmas" not in inspect.signature(pipeline.__call__).parameters:
        return {}
    return {"sigmas": [1 - number / steps for number in range(steps)]}


TEXT_TO_IMAGE = Task()


def min_strength(steps: int) -> float:
    """The smallest strength, with at most four digits where these suffice, that leaves one of `steps` steps."""
    digits = max(2, len(str(steps)) + 1)
    return math.ceil(10**digits / steps) / 10**digits
