"""`gendistill evaluate`: students beside their teacher, as rows, a table and a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from torch import Tensor

from gendistill.evaluation.judge import Judge, build_judge
from gendistill.evaluation.reporting import Gallery
from gendistill.evaluation.student_report import best_rows, results_table, teacher_table, write_report
from gendistill.evaluation.teacher_plans import (
    FILE_NAME,
    TEACHER_STEPS,
    Gap,
    cost_of_a_call,
    evaluate_student,
    evaluate_teacher,
    gaps,
    imitated_scale,
    save_rows,
    slider_scales,
    stored_rows,
    teacher_plans,
    teacher_scheduler,
)
from gendistill.metrics.evaluate import Evaluation
from gendistill.metrics.pairs.fidelity import paired_fidelity
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, StudentSpec

GALLERY_PICTURES = 64
FIDELITY_PICTURES = 256

Students = dict[str, tuple[FewStepSampler, list[int]]]  # by name; the step counts to draw in


@dataclass(frozen=True)
class Comparison:
    """The rows of students, their teacher's and the gap between them; without a student, the teacher's alone.

    Attributes:
        share: what a call of the student costs, in calls of its teacher (multiply-accumulates).
        slider: rows of w-conditioned students at other guidance scales, those that the teacher was measured at.
        warnings: what to know before trusting the figures.
    """

    student: list[Evaluation]
    teacher: list[Evaluation]
    gaps: list[Gap]
    files: list[Path]
    share: float = 1.0
    slider: list[Evaluation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """For the terminal."""
        if not self.student:
            return teacher_table(self.teacher)
        return results_table(self.student, self.slider, self.teacher, self.gaps, self.share)

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "slider": [dataclasses.asdict(row) for row in self.slider],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
                "cost_of_a_call": self.share,
                "gaps": [{**dataclasses.asdict(gap), "closed": gap.closed} for gap in self.gaps],
            },
            indent=1,
        )


def evaluate(
    model: str,
    *,
    teacher: str | None = None,
    reference: str,
    caption: str | dict[str, float] | None = None,
    prompts: str | None = None,
    num: int = 2000,
    steps: list[int] | None = None,
    extractor: str | None = None,
    clip: str | None = None,
    seed: int = 0,
    cache: str = ".cache/gendistill",
    out: Path | None = None,
    device: str | None = None,
    quantization: str | None = None,
) -> Comparison:
    """Judge a student beside its teacher and write evaluation.json and report.html to `out` (the model's own folder).

    The teacher's figures are read from `evaluation.json` in its folder where they were made by the same protocol, and
    made (and long) otherwise. A model that is no student is taken as a teacher: its figures are made and written.

    Args:
        cache: folder where what was drawn and extracted is kept.
        quantization: of the student, see `quantize`; as it was trained to, on a CPU, where None.
        model: a student; the folder of a run that left one student a step count (`student-8`, `student-4`, ...), for all of
            them; or a teacher.

    Raises:
        ValueError: a model, the reference or a metric network cannot be used.
    """
    device = usable_device(device)
    folders = student_folders(Path(model)) or [Path(model)]
    sources = [folder if folder.is_dir() else model for folder in folders]
    samplers = [FewStepSampler.from_pretrained(source, device=device, quantization=quantization) for source in sources]
    sampler = samplers[0]
    if out is None and not Path(model).is_dir():
        raise ValueError(f"out: model {model} is no folder to write to; takes --out FOLDER")
    with advancing_bar("reading the reference") as progress:
        judge = build_judge(
            reference,
            caption=caption,
            num=num,
            seed=seed,
            extractor=extractor,
            clip=clip,
            prompts=prompts,
            cache=cache,
            keep=True,
            device=device,
            progress=progress,
        )
    judge = judge.of_models([sampler])
    folder = make_folder(out or Path(model))
    if sampler.spec is None:
        rows = _teacher_rows(sampler, judge, Path(model).name)
        save_rows(rows, folder / FILE_NAME)
        return Comparison([], rows, [], [folder / FILE_NAME])

    students = _students(folders, samplers, steps)
    rows, slider = _student_rows(students, judge)
    config, revision = (sampler.spec.teacher_config, sampler.spec.teacher_revision) if teacher is None else (None, None)
    teacher = teacher or sampler.spec.teacher
    teacher_sampler = FewStepSampler.from_pretrained(teacher, config=config, revision=revision, device=device)
    teacher_rows = stored_rows(Path(teacher), rows[0]) or _teacher_rows(teacher_sampler, judge, Path(teacher).name)
    rows, slider = _with_fidelity(rows, slider, students, teacher_sampler, judge)
    files = [folder / FILE_NAME, folder / "report.html"]
    share = cost_of_a_call(sampler, teacher_sampler)
    comparison = Comparison(rows, teacher_rows, gaps(rows, teacher_rows, share), files, share, slider)
    with written_aside(folder / FILE_NAME) as aside:
        aside.write_text(comparison.to_json() + "\n")
    few = judge.first(GALLERY_PICTURES)
    galleries = _galleries(few, students, rows, teacher_sampler, best_rows(rows, teacher_rows))
    title = f"{sampler.spec.method} student of {Path(teacher).name}"
    write_report(folder / "report.html", title, rows, slider, teacher_rows, comparison.gaps, share, galleries)
    return comparison


def student_folders(run: Path) -> list[Path]:
    """The students of a run that left several, most steps first; none where the folder is a model itself."""
    if not run.is_dir() or (run / "model_index.json").is_file() or StudentSpec.load(run) is not None:
        return []
    found = [(spec, folder) for folder in run.glob("student*") if (spec := StudentSpec.load(folder)) is not None]
    return [folder for _, folder in sorted(found, key=lambda pair: -pair[0].num_inference_steps[0])]


def _students(folders: list[Path], samplers: list[FewStepSampler], steps: list[int] | None) -> Students:
    """By name: `student`, with its quantization where it has one, or that of the folder where there are several.

    Raises:
        ValueError: `steps` asks several students for what none of them was trained for.
    """
    if len(folders) == 1:
        spec = samplers[0].spec
        assert spec is not None
        name = "student" if samplers[0].quantization == "none" else f"student, {samplers[0].quantization}"
        return {name: (samplers[0], steps or list(spec.num_inference_steps))}
    students: Students = {}
    for folder, sampler in zip(folders, samplers, strict=True):
        assert sampler.spec is not None
        counts = [count for count in sampler.spec.num_inference_steps if steps is None or count in steps]
        if counts:
            students[folder.name] = (sampler, counts)
    if not students:
        raise ValueError(f"steps {steps}: the run has students of other step counts: {', '.join(f.name for f in folders)}")
    return students


def _student_rows(students: Students, judge: Judge) -> tuple[list[Evaluation], list[Evaluation]]:
    """A row for each step count at the student's own guidance scale, and those of its slider."""
    rows, slider = [], []
    scales = {name: slider_scales(sampler) for name, (sampler, _) in students.items()}
    total = sum(len(counts) * (1 + len(scales[name])) for name, (_, counts) in students.items())
    with advancing_bar("drawing from the student", len(judge.prompts) * total) as progress:
        for name, (sampler, counts) in students.items():
            rows += evaluate_student(sampler, judge, model=name, steps=counts, progress=progress)
            for scale in scales[name]:
                slider += evaluate_student(sampler, judge, model=name, steps=counts, guidance_scale=scale, progress=progress)
    return rows, slider


def _teacher_rows(sampler: FewStepSampler, judge: Judge, name: str) -> list[Evaluation]:
    with advancing_bar("drawing from the teacher", len(judge.prompts) * len(teacher_plans(sampler))) as progress:
        return evaluate_teacher(sampler, judge, model=name, progress=progress)


def _with_fidelity(
    rows: list[Evaluation], slider: list[Evaluation], students: Students, teacher: FewStepSampler, judge: Judge
) -> tuple[list[Evaluation], list[Evaluation]]:
    """The rows with the scores of `fidelity`: against what the teacher draws in 50 steps at the guidance that is imitated."""
    few = judge.first(FIDELITY_PICTURES)
    scales = {id(row): imitated_scale(students[row.model][0], row) for row in [*rows, *slider]}
    drawn: dict[float, Tensor] = {}
    total = len(few.prompts) * (len(set(scales.values())) + len(scales))
    with advancing_bar("holding them against the teacher's", total) as progress:
        for scale in sorted(set(scales.values())):
            drawn[scale] = _draw_teacher(teacher, few, "ddim", TEACHER_STEPS, scale, None, progress)

        def scored(row: Evaluation) -> Evaluation:
            sampler = students[row.model][0]
            pictures = few.draw(sampler, row.steps, row.guidance_scale, progress)
            near = paired_fidelity(pictures, drawn[scales[id(row)]], judge.extractor)
            return dataclasses.replace(row, scores={**row.scores, **near.means()})

        return [scored(row) for row in rows], [scored(row) for row in slider]


def _draw_teacher(
    teacher: FewStepSampler,
    judge: Judge,
    solver: str,
    steps: int,
    scale: float,
    timesteps: list[int] | None,
    progress: Callable[[int], None],
) -> Tensor:
    usual = teacher.pipeline.scheduler
    teacher.pipeline.scheduler = teacher_scheduler(solver, usual.config, bounded=teacher.family.bounded, timesteps=timesteps)
    pictures = judge.draw(teacher, steps, scale, progress)
    teacher.pipeline.scheduler = usual
    return pictures


def _galleries(
    judge: Judge,
    students: Students,
    student_rows: list[Evaluation],
    teacher: FewStepSampler,
    teacher_rows: list[Evaluation],
) -> list[Gallery]:
    """Every row of the table as a grid of the same prompts and seeds."""
    galleries = []
    with advancing_bar("drawing the grids", len(judge.prompts) * len([*student_rows, *teacher_rows])) as progress:
        for row in [*student_rows, *teacher_rows]:
            steps, scale, timesteps = (
                row.steps,
                row.guidance_scale,
                row.protocol.timesteps,
            )
            if row in student_rows:
                pictures = judge.draw(students[row.model][0], steps, scale, progress)
            else:
                pictures = _draw_teacher(teacher, judge, row.sampler, steps, scale, timesteps, progress)
            guidance = f", guidance {scale:g}" if scale > 1 else ""
            galleries.append(Gallery(f"{row.model}, {row.sampler}, {steps} steps{guidance}", pictures, judge.prompts))
    return galleries
