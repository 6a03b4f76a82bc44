"""Sampling settings of published few-step models, which are recognised by their configs or file names.

The settings are from the models' cards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gendistill.samplers.families import network_of
from gendistill.samplers.spec import StudentSpec

TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class KnownStudent:
    """A kind of few-step model.

    Attributes:
        name: pattern of the name of the file or folder; its group `steps` is the step count of that file.
        steps: step counts if the name has none, the main one first.
        scheduler, changes: a scheduler of diffusers, and the differences from the base model's config.
        timesteps: timesteps by step count, if they are not the scheduler's defaults.
        more: other fields of the `StudentSpec`, for models whose guidance is not baked in or whose steps add fresh noise.
    """

    method: str
    name: str
    steps: tuple[int, ...]
    scheduler: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def suits(self, scheduler: Any) -> bool:
        """Whether a model's own scheduler is one for its few steps: of the same class, or on the same trailing timesteps."""
        expected = self.changes.get("prediction_type", scheduler.config.get("prediction_type"))
        if scheduler.config.get("prediction_type") != expected:
            return False
        on_trailing = "timestep_spacing" in self.changes and scheduler.config.get("timestep_spacing") == "trailing"
        return on_trailing or (type(scheduler).__name__ == self.scheduler and "timestep_spacing" not in self.changes)

    def spec(self, source: str, base_config: Mapping[str, Any], own: Any = None) -> StudentSpec:
        """The sampling settings of `source`.

        Args:
            base_config: config of its scheduler, or of its base model's.
            own: its own scheduler, which is used as it is.
        """
        match = re.search(self.name, Path(source).name)
        count = match.groupdict().get("steps") if match else None
        steps = (int(count),) if count else self.steps
        config = {name: value for name, value in base_config.items() if not name.startswith("_")}
        scheduler, changes = (self.scheduler, self.changes) if own is None else (type(own).__name__, {})
        return StudentSpec(
            method=self.method,
            teacher=source,
            num_inference_steps=steps,
            solver=scheduler.removesuffix("Scheduler").lower(),
            scheduler_class=scheduler,
            scheduler_config={**config, "clip_sample": False, **changes},
            prediction_type=changes.get("prediction_type", config.get("prediction_type", "epsilon")),
            timesteps={count: list(grid) for count, grid in self.timesteps.items() if count in steps} or None,
            **{"guidance": "baked", "guidance_scale": 1.0, **self.more},
        )


N = r"(?P<steps>\d+)[-_ ]?steps?"
CFG = {"guidance": "cfg", "guidance_scale": 5.0}
SLIDER = {"guidance": "embedded", "guidance_scale": 8.0, "guidance_range": (1.0, 14.0)}
KNOWN = (
    KnownStudent("Hyper-SD, CFG kept", rf"(?i)hyper-?sd.*{N}-cfg", (8,), "DDIMScheduler", TRAILING, more=CFG),
    KnownStudent("Hyper-SD, 1 step", r"(?i)hyper-?sdxl-1-?step-unet", (1,), "LCMScheduler", timesteps={1: (800,)}),
    KnownStudent("Hyper-SD, unified", r"(?i)hyper-?sd.*1-?step-lora", (1, 2, 4, 8), "TCDScheduler", more={"eta": 1.0}),
    KnownStudent("Hyper-SD", rf"(?i)hyper-?sd.*{N}", (4, 2, 8), "DDIMScheduler", TRAILING),
    KnownStudent(
        "SDXL-Lightning, 1 step",
        r"(?i)lightning.*1[-_ ]?step",
        (1,),
        "EulerDiscreteScheduler",
        {**TRAILING, "prediction_type": "sample"},
    ),
    KnownStudent("SDXL-Lightning", rf"(?i)lightning.*{N}", (4, 2, 8), "EulerDiscreteScheduler", TRAILING),
    KnownStudent(
        "DMD2",
        r"(?i)dmd2.*?(?P<steps>\d)?[-_ ]?(step|$)",
        (4,),
        "LCMScheduler",
        timesteps={4: (999, 749, 499, 249), 1: (399,)},
    ),
    KnownStudent("TCD", r"(?i)\btcd[-_ ]", (4, 8), "TCDScheduler", more={"eta": 0.3}),
    KnownStudent("LCM-LoRA", r"(?i)lcm[-_ ]?lora", (4, 8, 2), "LCMScheduler"),
    KnownStudent("Turbo", r"(?i)\bsd(xl)?[-_ ]?turbo", (1, 2, 4), "EulerDiscreteScheduler", TRAILING),
)
LCM = KnownStudent("LCM", r"", (4, 8, 2), "LCMScheduler", more=SLIDER)


def known_by_name(source: str | Path) -> KnownStudent | None:
    """The kind of few-step model by the name of its file, folder or hub id; None if the name is unknown."""
    name = Path(str(source)).name
    return next((kind for kind in KNOWN if re.search(kind.name, name)), None)


def known_by_config(pipeline: Any) -> KnownStudent | None:
    """The kind of few-step model by the configs of an opened pipeline: LCM, if guidance is an input of the network and the
    scheduler is LCM's; Turbo, for SDXL at 512 pixels on the trailing grid; otherwise None."""
    scheduler, network = pipeline.scheduler, network_of(pipeline)
    if type(scheduler).__name__ == "LCMScheduler" and network.config.get("time_cond_proj_dim"):
        return LCM
    if (
        type(pipeline).__name__ == "StableDiffusionXLPipeline"
        and network.config.sample_size == 64
        and scheduler.config.get("timestep_spacing") == "trailing"
    ):
        return next(kind for kind in KNOWN if kind.method == "Turbo")
    return None
