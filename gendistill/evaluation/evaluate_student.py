"""`gendistill evaluate` for diffusion models: students compared with their teacher, as rows, a table and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gendistill.assets import asset_path
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator
from gendistill.evaluation.report_folder import REPORT, report_folder
from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, best_rows, write_report
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.evaluation.teacher_plans import (
    FILE_NAME,
    TEACHER_STEPS,
    distilled_scale,
    gaps,
    other_guidance_scales,
    relative_call_cost,
    save_rows,
    solver_of,
    stored_dtype,
    stored_rows,
    teacher_rows,
)
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.device import usable_device, usable_dtype
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, StudentSpec

GALLERY_IMAGES = 64

Students = dict[str, tuple[FewStepSampler, list[int]]]  # by name: sampler and step counts


def evaluate_student(model: str, config: EvaluationConfig) -> StudentComparison:
    """Evaluate a student and its teacher and write evaluation.json and report.html to `config.out`.

    The teacher's figures are read from `evaluation.json` in its folder if they were measured by the same protocol, and
    measured otherwise, which takes long. A model that is not a student is evaluated as a teacher.

    Args:
        model: a student; a run folder with one student per step count (`student-8`, `student-4`, ...), which are all
            evaluated; or a teacher.

    Raises:
        ValueError: a model, the reference, a metric or a metric network cannot be used.
    """
    folders = student_folders(Path(model)) or [Path(model)]
    dtype = usable_dtype(config.dtype or _dtype_of_teacher(folders[0], config) or "float32")
    device = usable_device(config.device)
    sources = [folder if folder.is_dir() else model for folder in folders]
    samplers = [
        FewStepSampler.from_pretrained(source, dtype=dtype, device=device, quantization=config.quantization)
        for source in sources
    ]
    sampler = samplers[0]
    if config.out is None and not Path(model).is_dir():
        raise ValueError(f"out: model {model} is not a folder to write to; expects --out FOLDER")
    evaluator = build_evaluator(replace(config, device=device), samplers, keep=True)
    with report_folder(config.out or Path(model), (FILE_NAME, REPORT) if sampler.spec else (FILE_NAME,)) as folder:
        if sampler.spec is not None:
            return _evaluate_students(folders, samplers, evaluator, replace(config, device=device), folder)
        rows, file = teacher_rows(sampler, evaluator, Path(model).name), folder / FILE_NAME
        save_rows(rows, file)
        return StudentComparison([], rows, files=[file], requested=evaluator.requested)


def _evaluate_students(
    folders: list[Path], samplers: list[FewStepSampler], evaluator: Evaluator, config: EvaluationConfig, out: Path
) -> StudentComparison:
    files, sampler, device = [out / FILE_NAME, out / REPORT], samplers[0], config.device or "cpu"
    assert sampler.spec is not None
    source = sampler.spec.of_teacher
    if config.teacher is None and (named := Path(source.teacher)).is_absolute() and not named.exists():
        raise ValueError(f"teacher {named} of the student does not exist; expects --teacher with its present path")
    students = _students(folders, samplers, config.steps)
    rows, guidance_rows = _student_rows(students, evaluator)
    spec, teacher = sampler.spec, config.teacher or source.teacher
    opening = {"loras": source.teacher_loras} if config.teacher else source.teacher_opening
    teacher_sampler = FewStepSampler.from_pretrained(teacher, **opening, dtype=sampler.dtype, device=device)
    teacher_folder = Path(asset_path(teacher))
    stored = [] if source.teacher_loras else stored_rows(teacher_folder, rows[0])
    teacher_name = " + ".join([teacher_folder.name, *(Path(lora.path).stem for lora in source.teacher_loras)])
    rows_of_teacher = stored or teacher_rows(teacher_sampler, evaluator, teacher_name, config.teacher_scales)
    if wants_fidelity(evaluator):
        rows, guidance_rows = _with_fidelity(rows, guidance_rows, students, teacher_sampler, evaluator)
    call_cost = relative_call_cost(sampler, teacher_sampler)
    closed = gaps(rows, rows_of_teacher, call_cost)
    comparison = StudentComparison(
        rows, rows_of_teacher, closed, files, call_cost, guidance_rows, requested=evaluator.requested
    )
    with atomic_write(files[0]) as temporary:
        temporary.write_text(comparison.to_json() + "\n")
    few = evaluator.first(GALLERY_IMAGES)
    galleries = _galleries(few, rows, students, best_rows(rows, rows_of_teacher), teacher_sampler)
    write_report(files[1], f"{spec.method} student of {Path(teacher).name}", comparison, galleries)
    return comparison


def _dtype_of_teacher(folder: Path, config: EvaluationConfig) -> str | None:
    """The precision of the stored figures of a student's teacher, with which the student's are comparable; None without any."""
    spec = StudentSpec.load(folder)
    return None if spec is None else stored_dtype(Path(asset_path(config.teacher or spec.of_teacher.teacher)))


def student_folders(run: Path) -> list[Path]:
    """The students of a run with one student per step count, most steps first; none if the folder is a model itself."""
    if not run.is_dir() or (run / "model_index.json").is_file() or StudentSpec.load(run) is not None:
        return []
    students = [(spec, folder) for folder in run.glob("student*") if (spec := StudentSpec.load(folder)) is not None]
    return [folder for _, folder in sorted(students, key=lambda student: -student[0].num_inference_steps[0])]


def _students(folders: list[Path], samplers: list[FewStepSampler], steps: Sequence[int] | None) -> Students:
    """Students by name: `student`, with its quantization if it has one, or the folder's name if there are several.

    Raises:
        ValueError: there are several students, and none was trained for any of `steps`.
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
    """Rows of each step count at the student's default guidance scale, and at the other scales of a w-conditioned student."""
    plans = [
        (name, sampler, scale, count)
        for name, (sampler, counts) in students.items()
        for scale in (sampler.default_guidance_scale, *other_guidance_scales(sampler))
        for count in counts
    ]
    rows: list[Evaluation] = []
    guidance_rows: list[Evaluation] = []
    with advancing_bar("sampling from the student", len(evaluator.prompts) * len(plans)) as progress:
        for name, sampler, scale, count in plans:
            evaluated = evaluator.evaluate(sampler, model=name, steps=count, guidance_scale=scale, progress=progress)
            (rows if scale == sampler.default_guidance_scale else guidance_rows).append(evaluated.evaluation)
    return rows, guidance_rows


def _with_fidelity(
    rows: list[Evaluation], guidance_rows: list[Evaluation], students: Students, teacher: FewStepSampler, evaluator: Evaluator
) -> tuple[list[Evaluation], list[Evaluation]]:
    """The rows with their fidelity to the teacher's images of 50 steps at the guidance scale that was distilled."""
    few, lpips = evaluator.first(FIDELITY_IMAGES), lpips_for(evaluator, str(teacher.device))
    scales = {id(row): distilled_scale(students[row.model][0], row.guidance_scale) for row in [*rows, *guidance_rows]}
    generated: dict[float, tuple[Tensor, Tensor]] = {}
    total = len(few.prompts) * (len(set(scales.values())) + len(scales))
    with advancing_bar("comparing with the teacher's images", total) as progress:
        for scale in sorted(set(scales.values())):
            with solver_of(teacher, "ddim"):
                images = few.generate(teacher, TEACHER_STEPS, scale, progress)
            generated[scale] = images, extract(evaluator.extractor, images)

        def scored(row: Evaluation) -> Evaluation:
            images = few.generate(students[row.model][0], row.steps, row.guidance_scale, progress)
            teacher_images, features = generated[scales[id(row)]]
            return with_fidelity(row, images, teacher_images, extract(evaluator.extractor, images), features, evaluator, lpips)

        return [scored(row) for row in rows], [scored(row) for row in guidance_rows]


def _galleries(
    evaluator: Evaluator, rows: list[Evaluation], students: Students, rows_of_teacher: list[Evaluation], teacher: FewStepSampler
) -> list[Gallery]:
    """A grid of the same prompts and seeds for every row of the students and of the teacher."""
    galleries = []
    with advancing_bar("sampling the grids", len(evaluator.prompts) * len([*rows, *rows_of_teacher])) as progress:
        for row in [*rows, *rows_of_teacher]:
            sampling = row.steps, row.guidance_scale, progress
            if row in rows:
                images = evaluator.generate(students[row.model][0], *sampling)
            else:
                with solver_of(teacher, row.sampler, row.protocol.timesteps):
                    images = evaluator.generate(teacher, *sampling)
            guidance = f", guidance {row.guidance_scale:g}" if row.guidance_scale > 1 else ""
            galleries.append(Gallery(f"{row.model}, {row.sampler}, {row.steps} steps{guidance}", images, evaluator.prompts))
    return galleries
