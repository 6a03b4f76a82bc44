"""`gendistill evaluate`: a student beside its teacher, as rows, a table and a report."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gendistill.atomic import written_aside
from gendistill.evaluation import (
    FILE_NAME,
    Gap,
    evaluate_student,
    evaluate_teacher,
    gaps,
    save_rows,
    stored_rows,
    teacher_plans,
    teacher_scheduler,
)
from gendistill.judge import Judge, build_judge
from gendistill.machine import make_folder, usable_device
from gendistill.metrics.evaluate import Evaluation
from gendistill.progress import advancing_bar
from gendistill.report import Gallery, best_rows, results_table, teacher_table, write_report
from gendistill.samplers import FewStepSampler

GALLERY_PICTURES = 64


@dataclass(frozen=True)
class Comparison:
    """A student's rows, its teacher's and the gap between them; without a student, the teacher's alone."""

    student: list[Evaluation]
    teacher: list[Evaluation]
    gaps: list[Gap]
    files: list[Path]

    def table(self) -> Table:
        """For the terminal."""
        if not self.student:
            return teacher_table(self.teacher)
        return results_table(self.student, self.teacher, self.gaps)

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
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
    out: Path | None = None,
    device: str | None = None,
) -> Comparison:
    """Judge a student beside its teacher and write evaluation.json and report.html to `out` (the model's own folder).

    The teacher's figures are read from `evaluation.json` in its folder where they were made by the same protocol, and
    made (and long) otherwise. A model that is no student is taken as a teacher: its figures are made and written.

    Raises:
        ValueError: a model, the reference or a metric network cannot be used.
    """
    device = usable_device(device)
    sampler = FewStepSampler.from_pretrained(model, device=device)
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
            progress=progress,
        )
    if sampler.own_prompts is not None:  # no texts that a picture could be held against
        judge = dataclasses.replace(judge, scorer=None)
    folder = make_folder(out or Path(model))
    if sampler.spec is None:
        rows = _teacher_rows(sampler, judge, Path(model).name)
        save_rows(rows, folder / FILE_NAME)
        return Comparison([], rows, [], [folder / FILE_NAME])

    counts = steps or list(sampler.spec.num_inference_steps)
    with advancing_bar("drawing from the student", num * len(counts)) as progress:
        student_rows = evaluate_student(sampler, judge, model="student", steps=counts, progress=progress)
    config, revision = (sampler.spec.teacher_config, sampler.spec.teacher_revision) if teacher is None else (None, None)
    teacher = teacher or sampler.spec.teacher
    teacher_sampler = FewStepSampler.from_pretrained(teacher, config=config, revision=revision, device=device)
    teacher_rows = stored_rows(Path(teacher), student_rows[0]) or _teacher_rows(teacher_sampler, judge, Path(teacher).name)
    closed = gaps(student_rows, teacher_rows)
    comparison = Comparison(student_rows, teacher_rows, closed, [folder / FILE_NAME, folder / "report.html"])
    with written_aside(folder / FILE_NAME) as aside:
        aside.write_text(comparison.to_json() + "\n")
    few = judge.first(GALLERY_PICTURES)
    galleries = _galleries(few, sampler, student_rows, teacher_sampler, best_rows(student_rows, teacher_rows))
    title = f"{sampler.spec.method} student of {Path(teacher).name}"
    write_report(folder / "report.html", title, student_rows, teacher_rows, closed, galleries, few.prompts)
    return comparison


def _teacher_rows(sampler: FewStepSampler, judge: Judge, name: str) -> list[Evaluation]:
    with advancing_bar("drawing from the teacher", len(judge.prompts) * len(teacher_plans(sampler))) as progress:
        return evaluate_teacher(sampler, judge, model=name, progress=progress)


def _galleries(
    judge: Judge,
    student: FewStepSampler,
    student_rows: list[Evaluation],
    teacher: FewStepSampler,
    teacher_rows: list[Evaluation],
) -> list[Gallery]:
    """Every row of the table as a grid of the same prompts and seeds."""
    config = teacher.pipeline.scheduler.config
    galleries = []
    with advancing_bar("drawing the grids", len(judge.prompts) * len([*student_rows, *teacher_rows])) as progress:
        for row in [*student_rows, *teacher_rows]:
            sampler = student if row in student_rows else teacher
            if sampler is teacher:
                teacher.pipeline.scheduler = teacher_scheduler(row.sampler, config, bounded=teacher.family.bounded)
            steps, scale = row.protocol.num_inference_steps, row.protocol.guidance_scale
            pictures = judge.draw(sampler, steps, scale, progress)
            guidance = f", guidance {scale:g}" if scale > 1 else ""
            galleries.append(Gallery(f"{row.model}, {row.sampler}, {steps} steps{guidance}", pictures))
    return galleries
