"""The models of a comparison: each with a distinct name and a sampler for every step count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gendistill.evaluation.evaluate_student import student_folders
from gendistill.evaluation.teacher_plans import SOLVERS, teacher_scheduler
from gendistill.samplers import FewStepSampler, Sampler
from gendistill.sampling.load import Opening, gan_folder, open_sampler


@dataclass(frozen=True)
class ModelEntry:
    """A model with its samplers and guidance scale.

    Attributes:
        samplers: samplers by step count, largest first; the students of one run form one entry.
        guidance_scale: guidance scale of the pipeline; 1 without guidance, or if the scale was distilled into the weights.
    """

    name: str
    samplers: dict[int, Sampler]
    guidance_scale: float
    is_student: bool

    def solver(self, steps: int) -> str:
        return self.samplers[steps].solver


def open_entries(
    models: list[str],
    steps: list[int],
    *,
    guidance_scale: float | None = None,
    solver: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> list[ModelEntry]:
    """Open the models of a comparison.

    Args:
        models: students, run folders with several students, GANs, or any other pipelines.
        steps: step counts; a student is sampled at those that it was trained for, a GAN in one step.
        guidance_scale: guidance scale of all models that support guidance; each model's default if None.
        solver: one of `SOLVERS`, for models that are not students; the pipeline's scheduler if None.
        dtype: precision of diffusion models; float32 if None.

    Raises:
        ValueError: a model cannot be opened, or a student was trained for none of the step counts.
    """
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}: expects {' or '.join(SOLVERS)}")
    unquantized = Opening(device, quantization="none")  # feature maps are read and LoRAs loaded

    def opening(model: str) -> Opening:
        return unquantized if gan_folder(model) is not None else replace(unquantized, dtype=dtype)

    names = distinct_names(models)
    return [
        _open(model, name, steps, guidance_scale, solver, opening(model)) for model, name in zip(models, names, strict=True)
    ]


def _open(
    model: str, name: str, steps: list[int], guidance_scale: float | None, solver: str | None, opening: Opening
) -> ModelEntry:
    folders = [str(folder) for folder in student_folders(Path(model))] or [model]
    samplers = [open_sampler(folder, opening) for folder in folders]
    first = samplers[0]
    if first.from_images:
        raise ValueError(
            f"model {model}: translates input images and has no prompts; expects gendistill evaluate --input FOLDER"
        )
    chosen_scale = guidance_scale if guidance_scale is not None and first.guided else first.default_guidance_scale
    if first.step_counts is None:
        if solver is not None and isinstance(first, FewStepSampler):
            first.pipeline.scheduler = teacher_scheduler(solver, first.pipeline)
        return ModelEntry(name, dict.fromkeys(sorted(steps, reverse=True), first), chosen_scale, is_student=False)
    supported = {count: sampler for sampler in samplers for count in sampler.step_counts or ()}
    chosen = {count: supported[count] for count in sorted(steps, reverse=True) if count in supported}
    if not chosen:
        supports = "was trained for" if first.spec else "is a GAN, with a step count of"
        raise ValueError(f"steps {steps}: {model} {supports} {', '.join(map(str, sorted(supported)))}; expects one of them")
    return ModelEntry(name, chosen, chosen_scale, is_student=first.method is not None)


def distinct_names(models: list[str]) -> list[str]:
    """The last component of each path without a final `student`; as many components as make all names distinct.

    Raises:
        ValueError: a model occurs twice.
    """
    if len(set(models)) < len(models):
        raise ValueError(f"models {', '.join(models)}: one is given twice; expects each once")
    paths = [tuple(part for part in Path(model).parts if part not in ("/", "..", ".")) or (model,) for model in models]
    paths = [parts[:-1] if parts[-1] == "student" and len(parts) > 1 else parts for parts in paths]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return models
