"""`gendistill evaluate` of diffusion models: students beside their teacher, as rows, a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gendistill.assets import asset_path
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.judge import Judge, build_judge
from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, best_rows, write_report
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.evaluation.teacher_plans import (
    FILE_NAME,
    TEACHER_STEPS,
    cost_of_a_call,
    gaps,
    imitated_scale,
    save_rows,
    slider_scales,
    solver_of,
    stored_rows,
    teacher_rows,
)
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, StudentSpec

GALLERY_PICTURES = 64

Students = dict[str, tuple[FewStepSampler, list[int]]]  # by name; the step counts to draw in


def evaluate_student(model: str, config: EvaluationConfig) -> StudentComparison:
    """Judge a student beside its teacher and write evaluation.json and report.html to `config.out`.

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
        raise ValueError(f"out: model {model} is no folder to write to; takes --out FOLDER")
    judge = build_judge(replace(config, device=device), samplers, keep=True)
    folder = make_folder(config.out or Path(model))
    files = [folder / FILE_NAME, folder / "report.html"]
    if sampler.spec is None:
        rows = teacher_rows(sampler, judge, Path(model).name)
        save_rows(rows, files[0])
        return StudentComparison([], rows, files=files[:1], requested=judge.requested)

    students = _students(folders, samplers, config.steps)
    rows, slider = _student_rows(students, judge)
    spec, teacher = sampler.spec, config.teacher or sampler.spec.teacher
    pinned, revision = (None, None) if config.teacher else (spec.teacher_config, spec.teacher_revision)
    teacher_sampler = FewStepSampler.from_pretrained(teacher, config=pinned, revision=revision, device=device)
    of_teacher = stored_rows(Path(asset_path(teacher)), rows[0]) or teacher_rows(teacher_sampler, judge, Path(teacher).name)
    if wants_fidelity(judge):
        rows, slider = _with_fidelity(rows, slider, students, teacher_sampler, judge)
    share = cost_of_a_call(sampler, teacher_sampler)
    closed = gaps(rows, of_teacher, share)
    comparison = StudentComparison(rows, of_teacher, closed, files, share, slider, requested=judge.requested)
    with written_aside(files[0]) as aside:
        aside.write_text(comparison.to_json() + "\n")
    few = judge.first(GALLERY_PICTURES)
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


def _student_rows(students: Students, judge: Judge) -> tuple[list[Evaluation], list[Evaluation]]:
    """A row for each step count at the student's own guidance scale, and those of its slider."""
    plans = [
        (name, sampler, scale, count)
        for name, (sampler, counts) in students.items()
        for scale in (sampler.default_guidance_scale, *slider_scales(sampler))
        for count in counts
    ]
    rows: list[Evaluation] = []
    slider: list[Evaluation] = []
    with advancing_bar("drawing from the student", len(judge.prompts) * len(plans)) as progress:
        for name, sampler, scale, count in plans:
            judged = judge.judge(sampler, model=name, steps=count, guidance_scale=scale, progress=progress)
            (rows if scale == sampler.default_guidance_scale else slider).append(judged.evaluation)
    return rows, slider


def _with_fidelity(
    rows: list[Evaluation], slider: list[Evaluation], students: Students, teacher: FewStepSampler, judge: Judge
) -> tuple[list[Evaluation], list[Evaluation]]:
    """The rows with the scores of `fidelity`: against what the teacher draws in 50 steps at the guidance that is imitated."""
    few, lpips = judge.first(FIDELITY_IMAGES), lpips_for(judge, str(teacher.device))
    scales = {id(row): imitated_scale(students[row.model][0], row.guidance_scale) for row in [*rows, *slider]}
    drawn: dict[float, tuple[Tensor, Tensor]] = {}
    total = len(few.prompts) * (len(set(scales.values())) + len(scales))
    with advancing_bar("holding them against the teacher's", total) as progress:
        for scale in sorted(set(scales.values())):
            with solver_of(teacher, "ddim"):
                pictures = few.draw(teacher, TEACHER_STEPS, scale, progress)
            drawn[scale] = pictures, extract(judge.extractor, pictures)

        def scored(row: Evaluation) -> Evaluation:
            pictures = few.draw(students[row.model][0], row.steps, row.guidance_scale, progress)
            of_teacher, features = drawn[scales[id(row)]]
            return with_fidelity(row, pictures, of_teacher, extract(judge.extractor, pictures), features, judge, lpips)

        return [scored(row) for row in rows], [scored(row) for row in slider]


def _galleries(
    judge: Judge, rows: list[Evaluation], students: Students, of_teacher: list[Evaluation], teacher: FewStepSampler
) -> list[Gallery]:
    """Every row of the table, the students' and the teacher's, as a grid of the same prompts and seeds."""
    galleries = []
    with advancing_bar("drawing the grids", len(judge.prompts) * len([*rows, *of_teacher])) as progress:
        for row in [*rows, *of_teacher]:
            how = row.steps, row.guidance_scale, progress
            if row in rows:
                pictures = judge.draw(students[row.model][0], *how)
            else:
                with solver_of(teacher, row.sampler, row.protocol.timesteps):
                    pictures = judge.draw(teacher, *how)
            guidance = f", guidance {row.guidance_scale:g}" if row.guidance_scale > 1 else ""
            galleries.append(Gallery(f"{row.model}, {row.sampler}, {row.steps} steps{guidance}", pictures, judge.prompts))
    return galleries
