"""What a picture is drawn from beside its prompt: another picture, a mask, a control, a style; by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Task:
    """What all pictures of a call are drawn from; one row a prompt.

    Attributes:
        pictures: (N, 3, H, W) in [0, 1], to begin at instead of noise.
        masks: (N, 1, H, W), 1 where a picture is to be painted anew; all of it where None.
        strength: the share of the steps that are made of a picture, in (0, 1]: 1 leaves little of it.
        controls: (N, 3, H, W) in [0, 1], what `controlnet` looks at; `control_scale`: how much it counts.
        controlnet: a diffusers `ControlNetModel`.
        styles: pictures, one a prompt, for the IP-Adapter that the pipeline has loaded (`pipeline.load_ip_adapter`). These are
            drawn one by one: diffusers gives all styles of a batch to each of its prompts.
    """

    pictures: Tensor | None = None
    masks: Tensor | None = None
    strength: float = 0.8
    controlnet: Any = None
    controls: Tensor | None = None
    control_scale: float = 1.0
    styles: Sequence[Any] | None = field(default=None)

    def require(self, count: int, steps: int) -> None:
        """Raise ValueError where it does not go with so many prompts, or with so many steps."""
        rows = {"pictures": self.pictures, "masks": self.masks, "controls": self.controls, "styles": self.styles}
        for name, of in rows.items():
            if of is not None and len(of) != count:
                raise ValueError(f"{name}: {len(of)} for {count} prompts; takes one a prompt")
        if self.masks is not None and self.pictures is None:
            raise ValueError("masks: takes pictures to paint in")
        if (self.controls is None) != (self.controlnet is None):
            raise ValueError("controlnet and controls: takes both or neither")
        if self.pictures is None:
            return
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength:g}: takes more than 0 and at most 1")
        if int(steps * self.strength) < 1:
            raise ValueError(
                f"strength {self.strength:g}: of {steps} step{'s' if steps != 1 else ''} it leaves none; takes at least "
                f"{1 / steps:.2g}"
            )

    def calls(self, steps: int) -> int:
        """How many of the steps are made."""
        return steps if self.pictures is None else min(int(steps * self.strength), steps)

    def pipeline(self, pipeline: Any) -> Any:
        """The stock pipeline that does it, around the same parts."""
        # imported here because they import every pipeline that diffusers has
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

        kind: Any
        if self.masks is not None:
            kind = AutoPipelineForInpainting
        else:
            kind = AutoPipelineForText2Image if self.pictures is None else AutoPipelineForImage2Image
        made = kind.from_pipe(pipeline, **({} if self.controlnet is None else {"controlnet": self.controlnet}))
        made.set_progress_bar_config(disable=True)
        return made

    def arguments(self, rows: slice) -> dict[str, Any]:
        """What that pipeline is called with besides, of these rows."""
        given: dict[str, Any] = {}
        if self.pictures is not None:
            given |= {"image": self.pictures[rows], "strength": self.strength}
        if self.masks is not None:
            given["mask_image"] = self.masks[rows]
        if self.controls is not None:
            given["image" if self.pictures is None else "control_image"] = self.controls[rows]
            given["controlnet_conditioning_scale"] = self.control_scale
        if self.styles is not None:
            given["ip_adapter_image"] = list(self.styles[rows])
        return given


TEXT_TO_IMAGE = Task()
