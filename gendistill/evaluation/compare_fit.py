"""Whether a comparison's students still fit their teacher: measured and cached by models, prompts and add-ons."""

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

IMAGES = 64  # of each model; the effect of a LoRA cannot be measured on fewer


def open_add_ons(loras: Sequence[str], controls: Sequence[tuple[str, str]], models: Sequence[ModelEntry]) -> list[AddOn]:
    """The LoRAs and ControlNets to load into the models of a comparison.

    Args:
        loras: files or folders.
        controls: folders of ControlNets, each with an image file, which is cropped and resized to the teacher's image size.
        models: the teacher first.

    Raises:
        ValueError: an add-on does not exist, or the models are not a diffusion teacher and its students.
    """
    options = [*(f"--lora {lora}" for lora in loras), *(f"--control {folder}" for folder, _ in controls)]
    teacher = _diffusion_sampler(models[0])
    if teacher is None or models[0].is_student or not any(model.is_student and _diffusion_sampler(model) for model in models):
        if options:
            raise ValueError(f"{options[0]}: expects a diffusion model as the first model, and a student of it after that")
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
    """Fit of every student, at its main step count, to the model of the first row.

    The teacher is sampled with its default step count, at the guidance scale that was distilled into the student.

    Args:
        folder: cache of the figures.

    Returns:
        Fits by student name; and a sentence for each student that cannot be compared with the teacher, or for too few images.
    """
    few, students, teacher = evaluator.first(IMAGES), main_rows(rows), rows[0].entry
    teacher_sampler = _diffusion_sampler(teacher)
    fits: dict[str, Fit] = {}
    notes: list[str] = []
    add_on_keys = [[str(add_on.source) for add_on in add_ons], [text for add_on in add_ons for text in add_on.contents]]
    images = len(few.prompts) * 2 * (1 + bool(add_ons) + len(add_ons))
    with advancing_bar("testing whether students still fit", images * len(students)) as progress:
        for row in students:
            name, sampler = row.entry.name, row.entry.samplers[row.steps]
            unmeasured = f"whether {name} still fits {teacher.name} was not measured"
            if teacher_sampler is None or not isinstance(sampler, FewStepSampler):
                if teacher_sampler is not None or isinstance(sampler, FewStepSampler):  # two GANs have no latents to compare
                    notes.append(f"{unmeasured}: expects two diffusion models of one latent space")
                continue
            scale = row.entry.guidance_scale
            teacher_scale = distilled_scale(sampler, scale) if teacher_sampler.family.has_guidance else 1.0
            keys = [
                ImageCache.key_of(teacher_sampler, teacher_sampler.default_steps, teacher_scale),
                ImageCache.key_of(sampler, row.steps, scale),
            ]
            measure = partial(
                measure_fit,
                teacher_sampler,
                sampler,
                few.prompts,
                few.seeds,
                student_steps=row.steps,
                guidance_scale=scale,
                add_ons=add_ons,
                extractor=few.extractor,
                progress=progress,
            )
            key_parts = [keys, few.prompts, few.seeds, *add_on_keys, few.extractor.weights_hash if add_ons else ""]
            try:
                fits[name] = cached_figures(folder, key_parts, Fit, measure, partial(progress, images))
            except ValueError as error:
                notes.append(f"{unmeasured}: {error}")
    if fits and add_ons and len(few.prompts) < IMAGES:
        notes.append(
            f"{len(few.prompts)} images are too few to measure the effects of LoRAs and ControlNets; use {IMAGES} or more"
        )
    return fits, notes


def _diffusion_sampler(model: ModelEntry) -> FewStepSampler | None:
    """The first sampler of a diffusion model; None for a GAN."""
    sampler = next(iter(model.samplers.values()))
    return sampler if isinstance(sampler, FewStepSampler) else None
