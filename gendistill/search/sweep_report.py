"""The results of a sweep: a table as JSON, as Markdown and on a page, and its figures with the Pareto front."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.curves import Point, Series, curves, on_front
from gendistill.evaluation.reporting.page import (
    Block,
    Cell,
    Column,
    Figure,
    Notice,
    Page,
    PageSection,
    Table,
    TableRow,
    Text,
    write_page,
)
from gendistill.evaluation.reporting.plot import Plot
from gendistill.runtime.files import atomic_write
from gendistill.search.change_point import MIN_SIZES, ChangePoint, SizedDistance, change_point
from gendistill.search.sweep import SweepResult, SweepRow

COLUMNS = ("size", "steps", "distance", "milliseconds", "megabytes")


def write_sweep(result: SweepResult, folder: Path, minutes: float) -> list[Path]:
    """Write the table, the page and the figures of a sweep; returns the files."""
    found = _change(result.rows)
    plots = {
        name: _plot(result.rows, name, label)
        for name, label in (("milliseconds", f"milliseconds of an image ({result.device})"), ("megabytes", "MB of weights"))
    }
    texts = {"sweep.json": json.dumps(_as_json(result, found), indent=1), "sweep.md": _markdown(result.rows, found)}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)
    for name, plot in plots.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            plot.save_png(temporary)
    write_page(_page(result, found, plots, minutes), folder / "report.html")
    return [folder / name for name in (*texts, *(f"{name}.png" for name in plots), "report.html")]


def sentence_of(found: ChangePoint | None) -> str:
    """The size at which quality breaks, in words."""
    if found is None:
        return f"A change point needs {MIN_SIZES} sizes or more, at several step counts."
    interval = f"{found.size:.2f} of the teacher (95 % interval {found.low:.2f} to {found.high:.2f})"
    factors = f"half the size multiplies the distance by {found.above:.2f} above it and by {found.below:.2f} below it"
    return (
        f"Quality breaks at {interval}: {factors}."
        if found.is_clear
        else f"No clear break; the best fit is {interval}: {factors}."
    )


def _change(rows: list[SweepRow]) -> ChangePoint | None:
    students = [SizedDistance(row.size, row.steps, row.distance) for row in rows]
    return change_point(students) if all(student.distance > 0 for student in students) else None


def _as_json(result: SweepResult, found: ChangePoint | None) -> dict[str, Any]:
    return {
        "device": result.device,
        "students": [asdict(row) for row in result.rows],
        "failures": {f"{size:g}": sentence for size, sentence in result.failures.items()},
        "change_point": None if found is None else asdict(found),
    }


def _cells(row: SweepRow) -> list[str]:
    return [f"{row.size:g}", str(row.steps), f"{row.distance:.4g}", f"{row.milliseconds:.1f}", f"{row.megabytes:.1f}"]


def _markdown(rows: list[SweepRow], found: ChangePoint | None) -> str:
    header = [COLUMNS[0], COLUMNS[1], rows[0].metric, *COLUMNS[3:], "parameters"]
    lines = [header, ["---:"] * len(header), *([*_cells(row), f"{row.parameters / 1e6:.2f} M"] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{sentence_of(found)}\n"


def _plot(rows: list[SweepRow], x: str, x_label: str) -> Plot:
    """The distance against a cost, a curve for each step count, whose points are labelled with the sizes."""
    by_steps: dict[int, list[Point]] = {}
    for row in rows:
        by_steps.setdefault(row.steps, []).append(Point(getattr(row, x), row.distance, label=f"{row.size:g}"))
    colours = colour_numbers([_steps(count) for count in by_steps])
    series = [Series(_steps(count), tuple(points), colours[_steps(count)]) for count, points in sorted(by_steps.items())]
    y_log = all(row.distance > 0 for row in rows)
    return curves(series, x_label, f"{rows[0].metric}: lower is better", x_log=True, y_log=y_log, front="lower")


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def _page(result: SweepResult, found: ChangePoint | None, plots: dict[str, Plot], minutes: float) -> Page:
    rows = result.rows
    front = on_front([Point(row.milliseconds, row.distance) for row in rows])
    table = Table(
        [
            Column("size", "Fraction of the teacher's multiply-accumulates and parameters.", align="left"),
            Column("steps"),
            Column(rows[0].metric, f"Of {rows[0].images} images of the run's own validation.", "lower"),
            Column("ms", f"Median time of an image on {result.device}, all components included.", "lower"),
            Column("MB", "The denoiser's weights as float32.", "lower"),
        ],
        [
            TableRow([Cell(text) for text in _cells(row)], highlight=Point(row.milliseconds, row.distance) in front)
            for row in rows
        ],
        "Highlighted: no other student is better in both distance and time.",
    )
    blocks: list[Block] = [Text(sentence_of(found)), table]
    blocks += [Notice(f"Size {size:g}: {sentence}") for size, sentence in result.failures.items()]
    caption = "The thin line is the Pareto front; labels are sizes."
    figures = [Figure(plot, caption) for plot in plots.values()]
    sections = [PageSection("Students", blocks), PageSection("Quality against cost", figures)]
    return Page("Sweep over sizes", sections, f"each size trained for {minutes:g} minutes", "Written by gendistill sweep.")
