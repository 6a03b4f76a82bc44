"""`gendistill evaluate` of diffusion models: students beside their teacher, as rows, a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator
from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, best_rows, write_report
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.evaluation.teacher_plans import (
    FILE_NAME,
    TEACHER_STEPS,
    cost_of_a_call,
    distilled_scale,
    gaps,
    save_rows,
    slider_scales,
    solver_of,
    stored_rows,
    teacher_rows,
)
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, StudentSpec

GALLERY_IMAGES = 64

Students = dict[str, tuple[FewStepSampler, list[int]]]  # by name; the step counts to sample in


def evaluate_student(model: str, config: EvaluationConfig) -> StudentComparison:
    """Evaluator a student beside its teacher and write evaluation.json and report.html to `config.out`.

    The teacher's figures are read from `evaluation.json` in its folder where they were made by the same protocol, and
    made (and long) otherwise. A model that is no student is taken as a teacher: its figures are made and written.

    Args:
        model: a student; the folder of a run that left one student a step count (`student-8`, `student-4`, ...), for all of
            them; or a teacher.

    Raises:
        ValueError: a model, the reference, a metric or a metric network cannot be used.
    """
    device = usable_device(config.device)
    folders = student_folders(Path(model)) or [Path(model)]
    sources = [folder if folder.is_dir() else model for folder in folders]
    samplers = [FewStepSampler.from_pretrained(of, device=device, quantization=config.quantization) for of in sources]
    sampler = samplers[0]
    if config.out is None and not Path(model).is_dir():
        raise ValueError(f"out: model {model} is no folder to write to; expects --out FOLDER")
    evaluator = build_evaluator(replace(config, device=device), samplers, keep=True)
    folder = make_folder(config.out or Path(model))
    files = [folder / FILE_NAME, folder / "report.html"]
    if sampler.spec is None:
        rows = teacher_rows(sampler, evaluator, Path(model).name)
        save_rows(rows, files[0])
        return StudentComparison([], rows, files=files[:1], requested=evaluator.requested)

    students = _students(folders, samplers, config.steps)
    rows, slider = _student_rows(students, evaluator)
    spec, teacher = sampler.spec, config.teacher or sampler.spec.teacher
    pinned, revision = (None, None) if config.teacher else (spec.teacher_config, spec.teacher_revision)
    teacher_sampler = FewStepSampler.from_pretrained(teacher, config=pinned, revision=revision, device=device)
    of_teacher = stored_rows(Path(teacher), rows[0]) or teacher_rows(teacher_sampler, evaluator, Path(teacher).name)
    if wants_fidelity(evaluator):
        rows, slider = _with_fidelity(rows, slider, students, teacher_sampler, evaluator)
    share = cost_of_a_call(sampler, teacher_sampler)
    closed = gaps(rows, of_teacher, share)
    comparison = StudentComparison(rows, of_teacher, closed, files, share, slider, requested=evaluator.requested)
    with atomic_write(files[0]) as temporary:
        temporary.write_text(comparison.to_json() + "\n")
    few = evaluator.first(GALLERY_IMAGES)
    galleries = _galleries(few, rows, students, best_rows(rows, of_teacher), teacher_sampler)
    write_report(files[1], f"{spec.method} student of {Path(teacher).name}", comparison, galleries)
    return comparison


def student_folders(run: Path) -> list[Path]:
    """The students of a run that left several, most steps first; none where the folder is a model itself."""
    if not run.is_dir() or (run / "model_index.json").is_file() or StudentSpec.load(run) is not None:
        return []
    found = [(spec, folder) for folder in run.glob("student*") if (spec := StudentSpec.load(folder)) is not None]
    return [folder for _, folder in sorted(found, key=lambda pair: -pair[0].num_inference_steps[0])]


def _students(folders: list[Path], samplers: list[FewStepSampler], steps: Sequence[int] | None) -> Students:
    """By name: `student`, with its quantization where it has one, or that of the folder where there are several.

    Raises:
        ValueError: `steps` asks several students for what none of them was trained for.
    """
    if len(folders) == 1:
        spec = samplers[0].spec
        assert spec is not None
        name = "student" if samplers[0].quantization == "none" else f"student, {samplers[0].quantization}"
        return {name: (samplers[0], list(steps or spec.num_inference_steps))}
    students: Students = {}
    for folder, sampler in zip(folders, samplers, strict=True):
        assert sampler.spec is not None
        counts = [count for count in sampler.spec.num_inference_steps if steps is None or count in steps]
        if counts:
            students[folder.name] = (sampler, counts)
    if not students:
        others = ", ".join(folder.name for folder in folders)
        raise ValueError(f"steps {list(steps or ())}: the run has students of other step counts: {others}")
    return students


def _student_rows(students: Students, evaluator: Evaluator) -> tuple[list[Evaluation], list[Evaluation]]:
    """A row for each step count at the student's own guidance scale, and those of its slider."""
    plans = [
        (name, sampler, scale, count)
        for name, (sampler, counts) in students.items()
        for scale in (sampler.default_guidance_scale, *slider_scales(sampler))
        for count in counts
    ]
    rows: list[Evaluation] = []
    slider: list[Evaluation] = []
    with advancing_bar("sampling from the student", len(evaluator.prompts) * len(plans)) as progress:
        for name, sampler, scale, count in plans:
            evaluated = evaluator.evaluate(sampler, model=name, steps=count, guidance_scale=scale, progress=progress)
            (rows if scale == sampler.default_guidance_scale else slider).append(evaluated.evaluation)
    return rows, slider


def _with_fidelity(
    rows: list[Evaluation], slider: list[Evaluation], students: Students, teacher: FewStepSampler, evaluator: Evaluator
) -> tuple[list[Evaluation], list[Evaluation]]:
    """The rows with the scores of `fidelity`: against what the teacher samples in 50 steps at the guidance that is imitated."""
    few, lpips = evaluator.first(FIDELITY_IMAGES), lpips_for(evaluator, str(teacher.device))
    scales = {id(row): distilled_scale(students[row.model][0], row.guidance_scale) for row in [*rows, *slider]}
    generated: dict[float, tuple[Tensor, Tensor]] = {}
    total = len(few.prompts) * (len(set(scales.values())) + len(scales))
    with advancing_bar("holding them against the teacher's", total) as progress:
        for scale in sorted(set(scales.values())):
            with solver_of(teacher, "ddim"):
                images = few.generate(teacher, TEACHER_STEPS, scale, progress)
            generated[scale] = images, extract(evaluator.extractor, images)

        def scored(row: Evaluation) -> Evaluation:
            images = few.generate(students[row.model][0], row.steps, row.guidance_scale, progress)
            of_teacher, features = generated[scales[id(row)]]
            return with_fidelity(row, images, of_teacher, extract(evaluator.extractor, images), features, evaluator, lpips)

        return [scored(row) for row in rows], [scored(row) for row in slider]


def _galleries(
    evaluator: Evaluator, rows: list[Evaluation], students: Students, of_teacher: list[Evaluation], teacher: FewStepSampler
) -> list[Gallery]:
    """Every row of the table, the students' and the teacher's, as a grid of the same prompts and seeds."""
    galleries = []
    with advancing_bar("sampling the grids", len(evaluator.prompts) * len([*rows, *of_teacher])) as progress:
        for row in [*rows, *of_teacher]:
            how = row.steps, row.guidance_scale, progress
            if row in rows:
                images = evaluator.generate(students[row.model][0], *how)
            else:
                with solver_of(teacher, row.sampler, row.protocol.timesteps):
                    images = evaluator.generate(teacher, *how)
            guidance = f", guidance {row.guidance_scale:g}" if row.guidance_scale > 1 else ""
            galleries.append(Gallery(f"{row.model}, {row.sampler}, {row.steps} steps{guidance}", images, evaluator.prompts))
    return galleries
