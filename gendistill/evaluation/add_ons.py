"""Effects of a teacher's LoRAs and ControlNets on the teacher and on its student.

The effect of an add-on is the mean shift of image features: features with the add-on minus features without it, for the same
prompts and seeds. An add-on fits the student if the shift has the same direction and length as the teacher's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendistill.metrics.features.extractors import FeatureExtractor
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices
from gendistill.runtime.hashing import file_sha256
from gendistill.samplers import FewStepSampler, to_uint8
from gendistill.samplers.tasks import TEXT_TO_IMAGE, Task
from gendistill.samplers.weighted_lora import lora_file
from gendistill.sampling.load_add_ons import DoesNotLoadError, open_control, require_control, tried, with_lora


@dataclass(frozen=True)
class SampledModel:
    """The teacher or the student with the settings, prompts and seeds of its sampling."""

    name: str
    sampler: FewStepSampler
    steps: int
    guidance_scale: float
    prompts: Sequence[str]
    seeds: Sequence[int]
    progress: Callable[[int], None] | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, "progress": self.progress}

    def first(self, count: int) -> SampledModel:
        """The same with the first `count` prompts and seeds."""
        return replace(self, prompts=self.prompts[:count], seeds=self.seeds[:count])

    def latents(self) -> Tensor:
        """The final latents: float32 (N, C, h, w) on the CPU."""
        return torch.cat([batch.float().cpu() for batch in self.sampler.latents(self.prompts, self.seeds, **self.options)])

    def features(self, extractor: FeatureExtractor, task: Task = TEXT_TO_IMAGE) -> Tensor:
        """Features (N, D) of the model's images for a task."""
        generated = self.sampler.images(self.prompts, self.seeds, task=task, **self.options)
        return extract(extractor, (to_uint8(batch).cpu() for batch in generated))


@dataclass(frozen=True, eq=False)
class AddOn:
    """A LoRA or a ControlNet that was trained for the teacher.

    Attributes:
        source: a LoRA's `.safetensors` file, or a folder with `pytorch_lora_weights.safetensors`; a `ControlNetModel`'s folder.
        image: control image of a ControlNet, (3, H, W) in [0, 1], of the images' size; None for a LoRA.
    """

    source: str | Path
    image: Tensor | None = None

    @property
    def kind(self) -> str:
        return "LoRA" if self.image is None else "ControlNet"

    def require(self, size: tuple[int, int]) -> None:
        """Raise ValueError if the add-on does not exist, or its control image is not (3, *size)."""
        if self.image is None:
            lora_file(self.source)
        else:
            require_control(self.source, self.image, size)

    @property
    def contents(self) -> list[str]:
        """Hashes of the add-on's files and control image."""
        if self.image is None:
            return [file_sha256(lora_file(self.source))]
        files = sorted(file for file in Path(self.source).iterdir() if file.is_file())
        return [*map(file_sha256, files), hashlib.sha256(self.image.numpy().tobytes()).hexdigest()]

    def apply(self, model: SampledModel) -> tuple[SampledModel, Task, list[str], str]:
        """The model with the add-on, the task to sample, the modules that were not loaded, and a sentence about them.

        A LoRA is loaded into a copy of the pipeline, in addition to its active adapters: the copy's network and text encoders
        need memory, too.

        Raises:
            DoesNotLoadError: the add-on does not load into this model.
        """
        sampler = model.sampler
        if self.image is None:
            pipeline, unfit, note = with_lora(sampler.pipeline, lora_file(self.source))
            return replace(model, sampler=FewStepSampler(pipeline, sampler.spec, sampler.eta)), TEXT_TO_IMAGE, unfit, note
        network, note = open_control(sampler.pipeline, Path(self.source))
        return model, Task(controlnet=network, controls=self.image.expand(len(model.prompts), -1, -1, -1)), [], note


@dataclass(frozen=True)
class Effect:
    """The effects of an add-on on the teacher's images and on the student's.

    Attributes:
        teacher_length, student_length: lengths of the mean shifts, in the extractor's units.
        cosine: cosine between the two mean shifts, in [-1, 1]; None if one of them is zero.
        repeated: cosine between the teacher's own shifts on the even and on the odd prompts: if it is low, there are too few
            images for a meaningful `cosine`. None if it is undefined.
    """

    teacher_length: float
    student_length: float
    cosine: float | None
    repeated: float | None

    @property
    def ratio(self) -> float | None:
        """Length of the student's shift relative to the teacher's; None if the teacher's is zero."""
        return self.student_length / self.teacher_length if self.teacher_length else None

    @property
    def kept(self) -> float | None:
        """The student's mean shift along the teacher's direction relative to the teacher's shift: 1 is the same effect, 0 is
        none; None if the teacher's shift is zero."""
        return None if self.ratio is None else self.ratio * (self.cosine or 0.0)


@dataclass(frozen=True)
class AddOnFit:
    """Whether an add-on of the teacher fits the student.

    Attributes:
        kind: `LoRA` or `ControlNet`.
        notes: sentences on what did not load, and why.
        unfit: modules with weights in a LoRA that the student's network lacks, or has with another width.
        effect: None if the add-on did not run in both models.
    """

    kind: str
    source: str
    notes: tuple[str, ...]
    unfit: tuple[str, ...]
    effect: Effect | None

    @property
    def name(self) -> str:
        """The last two components of the path, because many add-ons share their file name."""
        return "/".join(self.source.rstrip("/").split("/")[-2:])


def effect_of(teacher: Features, student: Features) -> Effect:
    """The effect from shifts of features (N, D) of the same prompts and seeds: features with the add-on minus those without.

    Raises:
        ValueError: there are no shifts, their numbers or dimensions differ, or they are not finite.
    """
    t, s = feature_matrices(teacher, student, ("teacher", "student"), min_rows=1)
    if len(t) != len(s):
        raise ValueError(f"teacher and student: got {len(t)} and {len(s)} images, expects the same prompts and seeds in both.")
    teacher_mean, student_mean = t.mean(axis=0), s.mean(axis=0)
    repeated = _cosine(t[::2].mean(axis=0), t[1::2].mean(axis=0)) if len(t) > 1 else None
    teacher_length, student_length = (float(np.linalg.norm(mean)) for mean in (teacher_mean, student_mean))
    return Effect(teacher_length, student_length, _cosine(teacher_mean, student_mean), repeated)


def add_on_fit(models: Sequence[SampledModel], add_on: AddOn, extractor: FeatureExtractor, plain: Sequence[Tensor]) -> AddOnFit:
    """The effects of an add-on on both models.

    Args:
        models: the teacher, then the student.
        plain: features (N, D) of the teacher's images and of the student's without the add-on.
    """
    name = lora_file(add_on.source).name if add_on.image is None else Path(add_on.source).name
    notes, shifts = [], []
    unfit: list[str] = []
    for model, without in zip(models, plain, strict=True):
        unfit = []
        try:
            changed, task, unfit, note = add_on.apply(model)
            notes += [f"The {model.name}: {note}."] if note else []
            shifts.append(tried(partial(changed.features, extractor, task), f"{name} does not run") - without)
        except DoesNotLoadError as error:
            notes.append(f"The {model.name}: {error}.")
            unfit = error.unfit
    effect = effect_of(*shifts) if len(shifts) == len(models) else None
    return AddOnFit(add_on.kind, str(add_on.source), (*notes, *_no_effect_notes(effect)), tuple(unfit), effect)


def _no_effect_notes(effect: Effect | None) -> list[str]:
    """A sentence for each model without an effect."""
    lengths = {} if effect is None else {"teacher": effect.teacher_length, "student": effect.student_length}
    return [f"It changes nothing in the {name}'s images." for name, length in lengths.items() if length == 0]


def _cosine(a: Matrix, b: Matrix) -> float | None:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else None
