"""The sampling settings of a student: `gendistill.json` in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers

from gendistill.samplers.teacher_path import found_path, relative_path
from gendistill.samplers.weighted_lora import WeightedLora
from gendistill.schedulers import GridDDIMScheduler, StochasticDDIMScheduler

FILE_NAME = "gendistill.json"
GUIDANCE = ("embedded", "baked", "cfg")


@dataclass(frozen=True)
class StudentSpec:
    """What a sampler needs of a student in addition to its weights.

    Attributes:
        num_inference_steps: step counts of the validation, the best first: `(4, 2, 1)`.
        solver: `ddim`, `lcm`, `tcd` or `stochastic`, the best solver of the validation.
        scheduler_class, scheduler_config: the scheduler of this solver.
        quantization: `int8` if the student was trained to compute in 8 bits, otherwise `none`.
        eta: `eta` of the pipeline's call, in [0, 1]; 0 is the pipelines' default.
        guidance: `embedded` (the scale is an input, one network call), `baked` (one fixed scale, no input) or `cfg`
            (classifier-free guidance; a guided step costs two network calls).
        guidance_scale: the default scale; for `baked`, the fixed scale.
        neutral_guidance: for `baked`, the `guidance_scale` of the pipeline's call: 1 is without classifier-free guidance; where
            the scale is an input of the network, the pipeline's default.
        guidance_range: for `embedded`, the range of scales in training.
        timesteps: timesteps by step count, for the step counts that do not use the scheduler's defaults.
        resolution: size of the images, the edge of squares or (height, width), where it is not the pipeline's own size, as that
            of a LoRA that was trained at another size than its teacher's.
        figures: of the validation that chose the solver, by name.
        validation_network: the feature network of the validations, with the hash of its weights.
        teacher_config, teacher_revision: arguments of `open_pipeline` for the teacher, in addition to its name.
        teacher_relative: the path of a local teacher relative to the folder of the student.
        teacher_loras: LoRAs that were merged into the teacher.
        lora_on_original: whether the LoRA of the student is one of the teacher without `teacher_loras`, whose changes it has.
    """

    method: str
    teacher: str
    num_inference_steps: tuple[int, ...]
    solver: str
    scheduler_class: str
    scheduler_config: dict[str, Any]
    guidance: str
    guidance_scale: float
    guidance_range: tuple[float, float] | None = None
    prediction_type: str = "epsilon"
    lora: bool = False
    quantization: str = "none"
    eta: float = 0.0
    timesteps: dict[int, list[int]] | None = None
    teacher_config: str | None = None
    teacher_revision: str | None = None
    resolution: int | tuple[int, int] | None = None
    teacher_relative: str | None = None
    neutral_guidance: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)
    validation_network: str = ""
    teacher_loras: tuple[WeightedLora, ...] = ()
    lora_on_original: bool = False
    format_version: int = 1

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images; None for the pipeline's own size."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def pipeline_guidance_scale(self) -> float:
        """The `guidance_scale` for a diffusers pipeline; 1 (off) or the default of an input if the scale is baked in."""
        return self.neutral_guidance if self.guidance == "baked" else self.guidance_scale

    @property
    def teacher_opening(self) -> dict[str, Any]:
        """Keyword arguments that open the teacher, by its name `teacher`, with its LoRAs merged."""
        return {"config": self.teacher_config, "revision": self.teacher_revision, "loras": self.teacher_loras}

    @property
    def of_teacher(self) -> StudentSpec:
        """This spec; of a LoRA of a student, the spec of that student, whose `teacher` generates in many steps."""
        base = StudentSpec.load(Path(self.teacher)) if self.lora else None
        return self if base is None else base.of_teacher

    def scheduler(self) -> Any:
        """The scheduler of this student, from diffusers or from gendistill."""
        own_classes = {kind.__name__: kind for kind in (GridDDIMScheduler, StochasticDDIMScheduler)}
        kind = own_classes.get(self.scheduler_class) or getattr(diffusers, self.scheduler_class, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ValueError(
                f"{FILE_NAME}: scheduler_class {self.scheduler_class!r} is not known; expects a scheduler of diffusers, or "
                + " or ".join(own_classes)
            )
        return kind.from_config(self.scheduler_config)

    def network_calls(self, num_inference_steps: int) -> int:
        """Network evaluations per image: a step of classifier-free guidance costs two."""
        doubled = self.guidance == "cfg" and self.guidance_scale > 1
        return num_inference_steps * (2 if doubled else 1)

    def save(self, folder: Path) -> None:
        """Write it to a folder, or to a temporary folder with the same parent."""
        stored = asdict(self) | {"teacher_relative": relative_path(self.teacher, folder)}
        stored["teacher_loras"] = [asdict(lora.stored(folder)) for lora in self.teacher_loras]
        (folder / FILE_NAME).write_text(json.dumps(stored, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> StudentSpec | None:
        """The spec in a folder, or None if the folder has none and so is no student."""
        path = folder / FILE_NAME
        if not os.path.isfile(path):
            return None
        try:
            stored = json.loads(path.read_text())
            stored["num_inference_steps"] = tuple(stored["num_inference_steps"])
            if stored.get("guidance_range") is not None:
                stored["guidance_range"] = tuple(stored["guidance_range"])
            if isinstance(stored.get("resolution"), list):
                stored["resolution"] = tuple(stored["resolution"])
            if stored.get("timesteps") is not None:
                stored["timesteps"] = {int(count): list(grid) for count, grid in stored["timesteps"].items()}
            stored["teacher"] = found_path(stored["teacher"], stored.get("teacher_relative"), folder)
            stored["teacher_loras"] = tuple(WeightedLora.found(lora, folder) for lora in stored.get("teacher_loras", ()))
            return StudentSpec(**stored)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a student description of this version: {error}") from error
