"""Does what was made for the teacher still do the same on the student? A LoRA and a ControlNet, by what they change.

The effect of an add-on is the mean shift of features: of images sampled with it, less those of the same prompts and seeds sampled
without. An add-on still fits where the student's images shift in the direction of the teacher's, and as far.
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
from gendistill.sampling.load_add_ons import DoesNotLoadError, lora_file, open_control, require_control, tried, with_lora


@dataclass(frozen=True)
class SampledModel:
    """A model and how its images are sampled: teacher or student, from given prompts and seeds."""

    name: str
    sampler: FewStepSampler
    steps: int
    guidance_scale: float
    prompts: Sequence[str]
    seeds: Sequence[int]
    progress: Callable[[int], None] | None = None

    @property
    def how(self) -> dict[str, Any]:
        return {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale, "progress": self.progress}

    def first(self, count: int) -> SampledModel:
        """The same of the first images alone."""
        return replace(self, prompts=self.prompts[:count], seeds=self.seeds[:count])

    def latents(self) -> Tensor:
        """What diffusion ends in: float32 (N, C, h, w) on the CPU."""
        return torch.cat([batch.float().cpu() for batch in self.sampler.latents(self.prompts, self.seeds, **self.how)])

    def features(self, extractor: FeatureExtractor, task: Task = TEXT_TO_IMAGE) -> Tensor:
        """Of its images (N, D), of another task than text alone where one is given."""
        generated = self.sampler.images(self.prompts, self.seeds, task=task, **self.how)
        return extract(extractor, (to_uint8(batch).cpu() for batch in generated))


@dataclass(frozen=True, eq=False)
class AddOn:
    """A LoRA or a ControlNet that was made for the teacher.

    Attributes:
        source: a LoRA's `.safetensors` file, or a folder with `pytorch_lora_weights.safetensors`; a `ControlNetModel`'s folder.
        image: that a ControlNet is controlled by, (3, H, W) in [0, 1], of the images' size; None of a LoRA.
    """

    source: str | Path
    image: Tensor | None = None

    @property
    def kind(self) -> str:
        return "LoRA" if self.image is None else "ControlNet"

    def require(self, size: tuple[int, int]) -> None:
        """Raise ValueError where it is not there, or its image is not (3, *size)."""
        if self.image is None:
            lora_file(self.source)
        else:
            require_control(self.source, self.image, size)

    @property
    def contents(self) -> list[str]:
        """Hashes of all that is in it."""
        if self.image is None:
            return [file_sha256(lora_file(self.source))]
        files = sorted(file for file in Path(self.source).iterdir() if file.is_file())
        return [*map(file_sha256, files), hashlib.sha256(self.image.numpy().tobytes()).hexdigest()]

    def on(self, model: SampledModel) -> tuple[SampledModel, Task, list[str], str]:
        """The model with it on, what is sampled then, the modules that it does not fit, and a sentence on them.

        A LoRA is loaded into a copy of the pipeline, beside the adapters that are on: memory holds one more network and its
        text encoders meanwhile.

        Raises:
            DoesNotLoadError: it does not load into this model.
        """
        sampler = model.sampler
        if self.image is None:
            pipeline, unfit, note = with_lora(sampler.pipeline, lora_file(self.source))
            return replace(model, sampler=FewStepSampler(pipeline, sampler.spec, sampler.eta)), TEXT_TO_IMAGE, unfit, note
        network, note = open_control(sampler.pipeline, Path(self.source))
        return model, Task(controlnet=network, controls=self.image.expand(len(model.prompts), -1, -1, -1)), [], note


@dataclass(frozen=True)
class Effect:
    """What an add-on does to the teacher's images and to the student's.

    Attributes:
        teacher_length, student_length: of the mean shifts, in the extractor's units.
        cosine: between the two mean shifts, in [-1, 1]; None where one of them is no shift at all.
        repeated: the cosine between the teacher's own shifts on every other prompt and on the rest: where it is low, there are
            too few images for the student's cosine to mean much. None where it cannot be told.
    """

    teacher_length: float
    student_length: float
    cosine: float | None
    repeated: float | None

    @property
    def ratio(self) -> float | None:
        """The student's shift as a multiple of the teacher's; None where the teacher's is none."""
        return self.student_length / self.teacher_length if self.teacher_length else None


@dataclass(frozen=True)
class AddOnFit:
    """Whether an add-on made for the teacher fits the student.

    Attributes:
        kind: `LoRA` or `ControlNet`.
        notes: sentences: what did not load, and why.
        unfit: of a LoRA, the modules of the student's network that it has weights for and that are not there, or are of
            another width.
        effect: None where it did not run in both models.
    """

    kind: str
    source: str
    notes: tuple[str, ...]
    unfit: tuple[str, ...]
    effect: Effect | None

    @property
    def name(self) -> str:
        """The last two parts of its path: a file's own name is often the same for all."""
        return "/".join(self.source.rstrip("/").split("/")[-2:])


def effect_of(teacher: Features, student: Features) -> Effect:
    """From shifts of features (N, D) of the same prompts and seeds: features with the add-on, less those without.

    Raises:
        ValueError: no shifts, other numbers of them, other features, or not finite.
    """
    t, s = feature_matrices(teacher, student, ("teacher", "student"), at_least=1)
    if len(t) != len(s):
        raise ValueError(f"teacher and student: got {len(t)} and {len(s)} images, expects the same prompts and seeds in both.")
    mean, other = t.mean(axis=0), s.mean(axis=0)
    halves = _cosine(t[::2].mean(axis=0), t[1::2].mean(axis=0)) if len(t) > 1 else None
    return Effect(float(np.linalg.norm(mean)), float(np.linalg.norm(other)), _cosine(mean, other), halves)


def add_on_fit(models: Sequence[SampledModel], add_on: AddOn, extractor: FeatureExtractor, plain: Sequence[Tensor]) -> AddOnFit:
    """What an add-on does to both models.

    Args:
        models: the teacher, then the student.
        plain: the features (N, D) of the teacher's images and of the student's without it.
    """
    name = lora_file(add_on.source).name if add_on.image is None else Path(add_on.source).name
    notes, shifts = [], []
    unfit: list[str] = []
    for model, without in zip(models, plain, strict=True):
        unfit = []
        try:
            changed, task, unfit, note = add_on.on(model)
            notes += [f"The {model.name}: {note}."] if note else []
            shifts.append(tried(partial(changed.features, extractor, task), f"{name} does not run") - without)
        except DoesNotLoadError as error:
            notes.append(f"The {model.name}: {error}.")
            unfit = error.unfit
    effect = effect_of(*shifts) if len(shifts) == len(models) else None
    return AddOnFit(add_on.kind, str(add_on.source), (*notes, *_silence(effect)), tuple(unfit), effect)


def _silence(effect: Effect | None) -> list[str]:
    """A sentence where there is no effect to compare."""
    lengths = {} if effect is None else {"teacher": effect.teacher_length, "student": effect.student_length}
    return [f"It changes nothing in the {name}'s images." for name, length in lengths.items() if length == 0]


def _cosine(a: Matrix, b: Matrix) -> float | None:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else None
