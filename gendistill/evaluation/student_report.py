"""The comparison of students with their teacher as a table for the terminal and as a page with images side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table as TerminalTable

from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.curves import Point, Series, curves
from gendistill.evaluation.reporting.page import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Figure,
    Galleries,
    Gallery,
    Page,
    PageSection,
    Table,
    write_page,
)
from gendistill.evaluation.score_cells import (
    Cells,
    explanations,
    protocol_section,
    score_cells,
    score_table,
    summary_names,
    terminal_table,
)
from gendistill.evaluation.teacher_plans import TEACHER_SAMPLERS, TEACHER_STEPS, Gap
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.notebook import table_html

EXPLAINED = "Gap closed: 0 is the teacher's best result by a training-free solver at equal cost, 1 is the teacher at 50 steps."


@dataclass(frozen=True)
class StudentComparison:
    """Rows of students and of their teacher, and the gaps that the students close; without a student, the teacher's rows.

    Attributes:
        call_cost: multiply-accumulates of a network call of the student, relative to the teacher's.
        slider: rows of w-conditioned students at the other guidance scales that the teacher was measured at.
        warnings: reasons to doubt the figures.
        requested: names of the requested metrics.
    """

    student: list[Evaluation]
    teacher: list[Evaluation]
    gaps: list[Gap] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    call_cost: float = 1.0
    slider: list[Evaluation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    requested: Sequence[str] | None = None

    @property
    def metric(self) -> str:
        """The name of the primary metric."""
        return (self.student or self.teacher)[0].protocol.metric

    @property
    def shown(self) -> list[Evaluation]:
        """Rows of a table: students at all guidance scales and the teacher's best; without a student, all of the teacher."""
        return [*self.student, *self.slider, *best_rows(self.student, self.teacher)] if self.student else self.teacher

    @property
    def summary(self) -> list[str]:
        """Reported names of the scores that tables show, the primary metric first."""
        return summary_names(self.student or self.teacher, self.requested)

    @property
    def colours(self) -> dict[str, int]:
        """Colour numbers of the curves by name; the teacher's is 0."""
        names = [*(row.model for row in self.student), *(f"teacher, {solver}" for solver in TEACHER_SAMPLERS)]
        return colour_numbers(names, reference="teacher")

    def gap(self, row: Evaluation) -> str:
        """The fraction of the gap that a student's row closes; empty for other rows."""
        closed = {gap.network_calls: f"{gap.closed:.2f}" for gap in self.gaps}
        return closed.get(row.network_calls, "") if row in self.student else ""

    def figures(self) -> Table:
        """A table of the students, the teacher at 50 steps, and the teacher's best within as many network calls."""
        colours = self.colours
        cells: Cells = {
            Column("model", align="left"): lambda row: Cell(row.model, colour=colours.get(row.model, 0)),
            Column("sampler", align="left"): lambda row: row.sampler,
            Column("steps"): lambda row: str(row.steps),
            Column("guidance"): lambda row: f"{row.guidance_scale:g}" if row.guidance_scale > 1 else "-",
            Column("calls", "Network calls per image; a guided step takes two."): lambda row: str(row.network_calls),
            **score_cells(self.summary),
            Column("ms", "Time per image, sampled in batches."): lambda row: (
                "" if row.seconds_per_image is None else f"{row.seconds_per_image * 1000:.1f}"
            ),
        }
        if self.student:
            cells = {**cells, Column("gap closed", EXPLAINED, "higher"): self.gap}
        return score_table(self.shown, cells, highlight=lambda row: row in self.student)

    def table(self) -> TerminalTable:
        """The table for the terminal."""
        table = terminal_table(f"{self.metric} on {self.shown[0].protocol.prompts}", self.figures(), self.metric)
        if self.student:
            sentences = [f"{card.value} {card.label}: {card.small}." for card in _full_length_cards(self)]
            table.caption = "\n".join(sentences or _cost(self.call_cost)) or None
        return table

    def _repr_html_(self) -> str:
        return table_html(self.table(), self.files)

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "slider": [dataclasses.asdict(row) for row in self.slider],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
                "cost_of_a_call": self.call_cost,
                "gaps": [{**dataclasses.asdict(gap), "closed": gap.closed} for gap in self.gaps],
            },
            indent=1,
        )


def best_rows(student: list[Evaluation], teacher: list[Evaluation]) -> list[Evaluation]:
    """The teacher's best row at 50 steps, and each solver's best row within each of the student's network call counts; none for
    a student alone."""
    if not teacher:
        return []
    metric = student[0].protocol.metric
    rows = [_best([row for row in teacher if row.steps == TEACHER_STEPS], metric)]
    for calls in sorted({row.network_calls for row in student}, reverse=True):
        for solver in TEACHER_SAMPLERS:
            within = [row for row in teacher if row.network_calls <= calls and row.sampler == solver]
            rows += [_best(within, metric)] if within else []
    return [row for number, row in enumerate(rows) if row not in rows[:number]]


def write_report(path: Path, title: str, comparison: StudentComparison, galleries: Sequence[Gallery]) -> None:
    """report.html: figures, quality against network calls and guidance scale, and grids of the same prompts and seeds."""
    student, slider, distance = comparison.student, comparison.slider, f"{comparison.metric}, lower is better"
    quality: list[Block] = [
        Figure(
            curves(_quality(comparison), "network calls", distance, x_log=True, y_log=True),
            "The teacher by each solver, at its best guidance scale.",
        )
    ]
    if slider and "clip_score" in slider[0].scores:
        caption = "The w-conditioned student at several guidance scales, next to its teacher; numbers are guidance scales."
        quality.append(Figure(curves(_slider(comparison), "CLIP score", distance), caption))
    cards = [*_gap_cards(comparison), *_full_length_cards(comparison)]
    explained = " ".join([EXPLAINED, *(f"{cost[0].upper()}{cost[1:]}." for cost in _cost(comparison.call_cost))])
    figures: list[Block] = [Cards(cards), comparison.figures(), explanations(comparison.summary)]
    page = Page(
        title,
        [
            PageSection("Figures", figures, explained),
            PageSection("Quality against network calls", quality),
            PageSection("The same prompts and seeds", [Galleries(galleries)]),
            protocol_section(student[0]),
        ],
        subtitle=f"{student[0].protocol.prompts}; against {student[0].protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


def _gap_cards(comparison: StudentComparison) -> list[Card]:
    return [
        Card(
            f"{gap.closed:.2f}",
            f"of the gap closed at {gap.network_calls} call{'s' if gap.network_calls != 1 else ''}",
            f"{comparison.metric}: student {gap.student:.2f}, best solver {gap.free:.2f}, teacher {gap.teacher:.2f}",
        )
        for gap in comparison.gaps
    ]


def _full_length_cards(comparison: StudentComparison) -> list[Card]:
    """Cards of students with at least as many steps as their teacher: their distance relative to the teacher's."""
    if not comparison.teacher:
        return []
    metric = comparison.metric
    best = best_rows(comparison.student, comparison.teacher)[0].scores[metric]
    cost = "".join(f"; {sentence}" for sentence in _cost(comparison.call_cost))
    return [
        Card(
            f"{row.scores[metric] / best:.2f}×",
            f"the teacher's {metric}, in {row.steps} steps",
            f"student {row.scores[metric]:.2f}, teacher {best:.2f}{cost}",
        )
        for row in comparison.student
        if row.steps >= TEACHER_STEPS
    ]


def _cost(call_cost: float) -> list[str]:
    if call_cost == 1:
        return []
    return [f"a call of the student costs {call_cost:.2f} of the teacher's multiply-accumulates"]


def _quality(comparison: StudentComparison) -> list[Series]:
    """Distance against network calls: a curve of the students, and of the teacher's best by each solver."""
    metric, colours, student = comparison.metric, comparison.colours, comparison.student
    ordered = sorted(student, key=lambda row: row.network_calls)
    points = tuple(Point(row.network_calls, row.scores[metric]) for row in ordered)
    series = [Series("student", points, colours[student[0].model])]
    for solver in TEACHER_SAMPLERS:
        best: dict[int, float] = {}
        for row in comparison.teacher:
            if row.sampler == solver:
                best[row.network_calls] = min(row.scores[metric], best.get(row.network_calls, float("inf")))
        if best:
            points, name = tuple(Point(calls, best[calls]) for calls in sorted(best)), f"teacher, {solver}"
            series.append(Series(name, points, colours[name], dashed=True))
    return series


def _slider(comparison: StudentComparison) -> list[Series]:
    """Distance against CLIP score, one point per guidance scale: w-conditioned students, and the teacher at 50 steps."""
    of_teacher = [row for row in comparison.teacher if row.steps == TEACHER_STEPS]
    rows = {"teacher": of_teacher} if of_teacher else {}
    for row in [*comparison.student, *comparison.slider]:
        rows.setdefault(row.model, []).append(row)
    series = []
    for name, model_rows in rows.items():
        ordered = sorted(model_rows, key=lambda row: row.guidance_scale)
        points = tuple(
            Point(row.scores["clip_score"], row.scores[comparison.metric], label=f"{row.guidance_scale:g}") for row in ordered
        )
        label = f"{name}, {ordered[0].steps} steps"
        series.append(Series(label, points, comparison.colours[name], dashed=name == "teacher"))
    return series


def _best(rows: list[Evaluation], metric: str) -> Evaluation:
    return min(rows, key=lambda row: row.scores[metric])
