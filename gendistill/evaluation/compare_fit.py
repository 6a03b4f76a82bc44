"""Whether a comparison's students still fit their teacher: measured once for the same models, prompts and add-ons, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gendistill.data.images import as_tensor, decode_image, fitted
from gendistill.evaluation.add_ons import AddOn
from gendistill.evaluation.cached_figures import cached_figures
from gendistill.evaluation.comparison import ComparisonRow, main_rows
from gendistill.evaluation.entries import ModelEntry
from gendistill.evaluation.evaluator import Evaluator
from gendistill.evaluation.fit import Fit, measure_fit
from gendistill.evaluation.image_cache import ImageCache
from gendistill.evaluation.teacher_plans import distilled_scale
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler

IMAGES = 64  # of each model; fewer say little of what a LoRA does


def open_add_ons(loras: Sequence[str], controls: Sequence[tuple[str, str]], models: Sequence[ModelEntry]) -> list[AddOn]:
    """Find what was given for a comparison's models, the teacher first.

    Args:
        loras: files or folders.
        controls: folders of ControlNets, each with the file of an image, of which the middle is taken at the teacher's size.

    Raises:
        ValueError: one is not there, or there are no teacher and student of diffusion to load it into.
    """
    given = [*(f"--lora {lora}" for lora in loras), *(f"--control {folder}" for folder, _ in controls)]
    teacher = _diffusing(models[0])
    if teacher is None or models[0].is_student or not any(model.is_student and _diffusing(model) for model in models):
        if given:
            raise ValueError(f"{given[0]}: expects a diffusion model as the first model, and a student of it after that")
        return []
    add_ons = [AddOn(lora) for lora in loras]
    for folder, file in controls:
        try:
            image = as_tensor(fitted(decode_image(Path(file)), *teacher.size)) / 2 + 0.5
        except ValueError as error:
            raise ValueError(f"--control {folder}={file}: {error}") from error
        add_ons.append(AddOn(folder, image))
    for add_on in add_ons:
        add_on.require(teacher.size)
    return add_ons


def measure_fits(
    rows: list[ComparisonRow], evaluator: Evaluator, add_ons: Sequence[AddOn], folder: Path
) -> tuple[dict[str, Fit], list[str]]:
    """Of every student, at the step count that it is meant for first, in the place of the first row's model.

    The teacher is sampled in its own default steps, at the guidance scale that the student imitates.

    Args:
        folder: where the figures are kept.

    Returns:
        By student's name; and a sentence on each that cannot be held against the teacher, or on too few images.
    """
    few, students, teacher = evaluator.first(IMAGES), main_rows(rows), rows[0].entry
    one = _diffusing(teacher)
    fits: dict[str, Fit] = {}
    notes: list[str] = []
    given = [[str(add_on.source) for add_on in add_ons], [text for add_on in add_ons for text in add_on.contents]]
    images = len(few.prompts) * 2 * (1 + bool(add_ons) + len(add_ons))
    with advancing_bar("looking whether students still fit", images * len(students)) as progress:
        for row in students:
            name, other = row.entry.name, row.entry.samplers[row.steps]
            unmeasured = f"whether {name} still fits {teacher.name} was not measured"
            if one is None or not isinstance(other, FewStepSampler):
                if one is not None or isinstance(other, FewStepSampler):  # GANs beside GANs have no latents to fit
                    notes.append(f"{unmeasured}: expects two diffusion models of one latent space")
                continue
            scale = row.entry.guidance_scale
            imitated = distilled_scale(other, scale) if one.family.guided else 1.0
            keys = [ImageCache.key_of(one, one.default_steps, imitated), ImageCache.key_of(other, row.steps, scale)]
            measure = partial(
                measure_fit,
                one,
                other,
                few.prompts,
                few.seeds,
                student_steps=row.steps,
                guidance_scale=scale,
                add_ons=add_ons,
                extractor=few.extractor,
                progress=progress,
            )
            asked = [keys, few.prompts, few.seeds, *given, few.extractor.weights_hash if add_ons else ""]
            try:
                fits[name] = cached_figures(folder, asked, Fit, measure, partial(progress, images))
            except ValueError as error:
                notes.append(f"{unmeasured}: {error}")
    if fits and add_ons and len(few.prompts) < IMAGES:
        notes.append(f"{len(few.prompts)} images are too few for what LoRAs and ControlNets do; take {IMAGES} or more")
    return fits, notes


def _diffusing(model: ModelEntry) -> FewStepSampler | None:
    """One of its samplers where it is a diffusion model."""
    sampler = next(iter(model.samplers.values()))
    return sampler if isinstance(sampler, FewStepSampler) else None
