"""The models of a comparison: each by a name of its own, with a sampler for every step count that it is sampled in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gendistill.evaluation.evaluate_student import student_folders
from gendistill.evaluation.teacher_plans import SOLVERS, teacher_scheduler
from gendistill.samplers import FewStepSampler, Sampler
from gendistill.sampling.load import Opening, open_sampler


@dataclass(frozen=True)
class ModelEntry:
    """A model, and how it is sampled from.

    Attributes:
        samplers: by the number of steps, most first; the students of one run are one entry.
        guidance_scale: of the pipeline; 1 where there is none, or where the scale is baked in.
    """

    name: str
    samplers: dict[int, Sampler]
    guidance_scale: float
    is_student: bool

    def solver(self, steps: int) -> str:
        return self.samplers[steps].solver


def open_entries(
    models: list[str], steps: list[int], *, guidance_scale: float | None = None, solver: str | None = None, device: str = "cpu"
) -> list[ModelEntry]:
    """Open what is compared.

    Args:
        models: students, folders of runs that left several, GANs, or any other pipelines.
        steps: counts to sample in; a student is sampled in those of them that it was validated at, a GAN in one.
        guidance_scale: of all models that have a choice; their own defaults where None.
        solver: one of `SOLVERS`, of models that are no students; the scheduler that they come with where None.

    Raises:
        ValueError: a model cannot be opened, or a student knows none of the step counts.
    """
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}: expects {' or '.join(SOLVERS)}")
    names = distinct_names(models)
    return [_open(model, name, steps, guidance_scale, solver, device) for model, name in zip(models, names, strict=True)]


def _open(model: str, name: str, steps: list[int], guidance_scale: float | None, solver: str | None, device: str) -> ModelEntry:
    folders = [str(folder) for folder in student_folders(Path(model))] or [model]
    unquantized = Opening(device, quantization="none")  # layers and LoRAs are looked into
    samplers = [open_sampler(folder, unquantized) for folder in folders]
    first = samplers[0]
    if first.from_images:
        raise ValueError(
            f"model {model}: generates images anew and is given no prompts; expects gendistill evaluate --input FOLDER"
        )
    chosen_scale = guidance_scale if guidance_scale is not None and first.guided else first.default_guidance_scale
    if first.step_counts is None:
        if solver is not None and isinstance(first, FewStepSampler):
            config = first.pipeline.scheduler.config
            first.pipeline.scheduler = teacher_scheduler(solver, config, bounded=first.family.bounded)
        return ModelEntry(name, dict.fromkeys(sorted(steps, reverse=True), first), chosen_scale, is_student=False)
    known = {count: sampler for sampler in samplers for count in sampler.step_counts or ()}
    chosen = {count: known[count] for count in sorted(steps, reverse=True) if count in known}
    if not chosen:
        made = "was trained for" if first.spec else "is a GAN, which samples in"
        raise ValueError(f"steps {steps}: {model} {made} {', '.join(map(str, sorted(known)))}; expects one of them")
    return ModelEntry(name, chosen, chosen_scale, is_student=first.method is not None)


def distinct_names(models: list[str]) -> list[str]:
    """The last part of each path, or more of them where it says too little (`student`) or two are the same.

    Raises:
        ValueError: a model is given twice.
    """
    if len(set(models)) < len(models):
        raise ValueError(f"models {', '.join(models)}: one is given twice; expects each once")
    parts = [tuple(part for part in Path(model).parts if part not in ("/", "..", ".")) or (model,) for model in models]
    parts = [of[:-1] if of[-1] == "student" and len(of) > 1 else of for of in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of[-length:]) for of in parts]
        if len(set(names)) == len(names):
            return names
    return models
