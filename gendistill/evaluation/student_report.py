"""Students beside their teacher, as a table for the terminal and as a page with pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from gendistill.evaluation.reporting import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Galleries,
    Gallery,
    Page,
    Point,
    Row,
    Section,
    Series,
    Table,
    colour_numbers,
    guidance_curve,
    quality_against_steps,
    write_page,
)
from gendistill.evaluation.teacher_plans import TEACHER_SAMPLERS, TEACHER_STEPS, Gap
from gendistill.metrics.evaluate import Evaluation, higher_is_better

COLUMNS = ("model", "sampler", "steps", "scale", "calls")


def results_table(
    student: list[Evaluation], slider: list[Evaluation], teacher: list[Evaluation], gaps: list[Gap], share: float = 1.0
) -> TerminalTable:
    """Student beside the teacher at full length and at its best within as many network calls."""
    metric = student[0].protocol.metric
    table = TerminalTable(title=f"{metric} on {student[0].protocol.prompts}", title_justify="left", box=SIMPLE_HEAD)
    table.caption = "\n".join(_sentences(student, teacher, share)) or None
    _add_columns(table, metric, "PSNR", "cosine", "gap")
    closed = {gap.network_calls: gap.closed for gap in gaps}
    for row in student:
        gap = f"{closed[row.network_calls]:.2f}" if row.network_calls in closed else ""
        table.add_row(*_cells(row, metric), *_fidelity_cells(row), gap, style="bold")
    for row in [*slider, *best_rows(student, teacher)]:
        table.add_row(*_cells(row, metric), *_fidelity_cells(row), "")
    return table


def teacher_table(rows: list[Evaluation]) -> TerminalTable:
    """All that was measured of a teacher."""
    metric = rows[0].protocol.metric
    table = TerminalTable(title=f"{metric} on {rows[0].protocol.prompts}", title_justify="left", box=SIMPLE_HEAD)
    _add_columns(table, metric)
    for row in rows:
        table.add_row(*_cells(row, metric))
    return table


def best_rows(student: list[Evaluation], teacher: list[Evaluation]) -> list[Evaluation]:
    """The teacher's best row at 50 steps, and for each solver its best within each of the student's numbers of calls."""
    metric = student[0].protocol.metric
    rows = [_best([row for row in teacher if row.steps == TEACHER_STEPS], metric)]
    for calls in sorted({row.network_calls for row in student}, reverse=True):
        for solver in TEACHER_SAMPLERS:
            within = [row for row in teacher if row.network_calls <= calls and row.sampler == solver]
            rows += [_best(within, metric)] if within else []
    return [row for number, row in enumerate(rows) if row not in rows[:number]]


def write_report(
    path: Path,
    title: str,
    student: list[Evaluation],
    slider: list[Evaluation],
    teacher: list[Evaluation],
    gaps: list[Gap],
    share: float,
    galleries: Sequence[Gallery],
) -> None:
    """report.html: figures, quality against network calls, the slider's curve, and grids at the same prompts and seeds."""
    metric = student[0].protocol.metric
    names = list(dict.fromkeys(row.model for row in student))
    curves = ["teacher", *names, *(f"teacher, {solver}" for solver in TEACHER_SAMPLERS)]
    colours = colour_numbers(curves, reference="teacher")
    quality: list[Block] = [
        Figure(
            quality_against_steps(
                _quality(student, teacher, colours), f"{metric}, lower is better", y_log=True, x_label="network calls"
            ),
            "The teacher at its best guidance scale by each solver.",
        )
    ]
    if slider and "clip_score" in slider[0].scores:
        curve = guidance_curve(_slider([*student, *slider], teacher, colours), "CLIP score", f"{metric}, lower is better")
        quality.append(Figure(curve, "guidance_scale moves the student along its teacher's own curve; numbers are scales."))
    cards = [*_gap_cards(gaps, metric), *_full_length_cards(student, teacher, share)]
    explained = " ".join([EXPLAINED, *(f"{told[0].upper()}{told[1:]}." for told in _cost(share))])
    page = Page(
        title,
        [
            Section("Figures", [Cards(cards), _table(student, slider, teacher, gaps, colours)], explained),
            Section("Quality against network calls", quality),
            Section("The same prompts and seeds", [Galleries(galleries)]),
            Section("Protocol", [Details("How the figures were made", student[0].protocol.describe(), opened=True)]),
        ],
        subtitle=f"{student[0].protocol.prompts}; against {student[0].protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


EXPLAINED = "Gap closed: 0 is the best that a solver gives the teacher at no more cost, 1 is the teacher at 50 steps."
SCORES = ("clip_score", "precision", "recall", "coverage", "psnr", "feature_cosine")


def _gap_cards(gaps: list[Gap], metric: str) -> list[Card]:
    return [
        Card(
            f"{gap.closed:.2f}",
            f"of the gap closed at {gap.network_calls} call{'s' if gap.network_calls != 1 else ''}",
            f"{metric}: student {gap.student:.2f}, best free {gap.free:.2f}, teacher {gap.teacher:.2f}",
        )
        for gap in gaps
    ]


def _full_length_cards(student: list[Evaluation], teacher: list[Evaluation], share: float) -> list[Card]:
    """Of students that take as many steps as their teacher: how much of its quality is left."""
    metric = student[0].protocol.metric
    best = best_rows(student, teacher)[0].scores[metric]
    return [
        Card(
            f"{row.scores[metric] / best:.2f}×",
            f"the teacher's {metric}, in {row.steps} steps",
            f"student {row.scores[metric]:.2f}, teacher {best:.2f}" + "".join(f"; {told}" for told in _cost(share)),
        )
        for row in student
        if row.steps >= TEACHER_STEPS
    ]


def _sentences(student: list[Evaluation], teacher: list[Evaluation], share: float) -> list[str]:
    """The same for the terminal."""
    return [f"{card.value} {card.label}: {card.small}." for card in _full_length_cards(student, teacher, share)] or _cost(share)


def _cost(share: float) -> list[str]:
    return [] if share == 1 else [f"a call of the student costs {share:.2f} of the teacher's multiply-accumulates"]


def _table(
    student: list[Evaluation],
    slider: list[Evaluation],
    teacher: list[Evaluation],
    gaps: list[Gap],
    colours: dict[str, int],
) -> Table:
    metric = student[0].protocol.metric
    scores = [metric, *(name for name in SCORES if name in student[0].scores)]
    columns = [Column("model", align="left"), Column("sampler", align="left"), Column("steps"), Column("guidance")]
    columns += [Column("calls", "Network calls a picture; a guided step is two.")]
    columns += [Column(NAMES.get(name, name), "", "higher" if higher_is_better(name) else "lower") for name in scores]
    columns += [Column("ms", "A picture, drawn in batches."), Column("gap closed", EXPLAINED, "higher")]
    closed = {gap.network_calls: gap.closed for gap in gaps}
    rows = []
    for row in [*student, *slider, *best_rows(student, teacher)]:
        gap = closed.get(row.network_calls) if row in student else None
        cells: list[Cell | str] = [
            Cell(row.model, colour=colours.get(row.model, 0)),
            *_cells(row, metric)[1:5],
            *(_score(row, name) for name in scores),
            _cells(row, metric)[-1],
            Cell("" if gap is None else f"{gap:.2f}", value=gap),
        ]
        rows.append(Row(cells, highlight=row in student))
    caption = "Beside a score its 95 % interval; beside a distance that of infinitely many pictures (∞)."
    return Table(columns, rows, caption)


NAMES = {"clip_score": "CLIP", "psnr": "PSNR", "feature_cosine": "cosine"}


def _score(row: Evaluation, name: str) -> Cell:
    if name not in row.scores:
        return Cell("")
    digits = 1 if name in ("clip_score", "psnr") else 3 if name == "feature_cosine" else 2
    interval = row.intervals.get(name)
    many = "∞ " if name == row.protocol.metric else ""
    small = "" if interval is None else f"{many}{interval[0]:.{digits}f}–{interval[1]:.{digits}f}"
    return Cell(f"{row.scores[name]:.{digits}f}", small, row.scores[name])


def _quality(student: list[Evaluation], teacher: list[Evaluation], colours: dict[str, int]) -> list[Series]:
    """The students' curve and the teacher's best by each solver, against network calls."""
    metric = student[0].protocol.metric
    found = {}
    for solver in TEACHER_SAMPLERS:
        best: dict[int, float] = {}
        for row in teacher:
            if row.sampler == solver:
                best[row.network_calls] = min(row.scores[metric], best.get(row.network_calls, float("inf")))
        if best:
            found[f"teacher, {solver}"] = [Point(calls, best[calls]) for calls in sorted(best)]
    series = [Series(name, tuple(points), colours[name], dashed=True) for name, points in found.items()]
    ordered = sorted(student, key=lambda row: row.network_calls)
    points = tuple(Point(row.network_calls, row.scores[metric]) for row in ordered)
    return [Series("student", points, colours[student[0].model]), *series]


def _slider(students: list[Evaluation], teacher: list[Evaluation], colours: dict[str, int]) -> list[Series]:
    """Distance and CLIP score, a point a guidance scale: w-conditioned students beside the teacher at full length."""
    metric = students[0].protocol.metric
    full = [row for row in teacher if row.steps == TEACHER_STEPS]
    curves = {"teacher": full}
    for row in students:
        curves.setdefault(row.model, []).append(row)
    series = []
    for name, rows in curves.items():
        ordered = sorted(rows, key=lambda row: row.guidance_scale)
        points = tuple(Point(row.scores["clip_score"], row.scores[metric], label=f"{row.guidance_scale:g}") for row in ordered)
        steps = f"{ordered[0].steps} steps"
        series.append(Series(f"{name}, {steps}", points, colours[name], dashed=name == "teacher"))
    return series


def _add_columns(table: TerminalTable, metric: str, *more: str) -> None:
    for column in (*COLUMNS, metric, "CLIP", "ms", *more):
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")


def _cells(row: Evaluation, metric: str) -> list[str]:
    scale = row.guidance_scale
    clip = f"{row.scores['clip_score']:.1f}" if "clip_score" in row.scores else ""
    return [
        row.model,
        row.sampler,
        str(row.steps),
        f"{scale:g}" if scale > 1 else "-",
        str(row.network_calls),
        f"{row.scores[metric]:.2f}",
        clip,
        "" if row.seconds_per_picture is None else f"{row.seconds_per_picture * 1000:.1f}",
    ]


def _fidelity_cells(row: Evaluation) -> list[str]:
    if "psnr" not in row.scores:
        return ["", ""]
    return [f"{row.scores['psnr']:.1f}", f"{row.scores['feature_cosine']:.3f}"]


def _best(rows: list[Evaluation], metric: str) -> Evaluation:
    return min(rows, key=lambda row: row.scores[metric])
