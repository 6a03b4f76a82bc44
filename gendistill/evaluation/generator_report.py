"""A GAN's student beside its teacher: the result, as a table and as a page with grids and strips side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table as TerminalTable
from torch import Tensor

from gendistill.evaluation.reporting import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Galleries,
    Gallery,
    Notice,
    Page,
    PageSection,
    Table,
    TableRow,
    Text,
    write_page,
)
from gendistill.evaluation.score_cells import (
    INTERVALS,
    Cells,
    explanations,
    score_cell,
    score_column,
    score_names,
    summary_names,
    terminal_table,
)
from gendistill.metrics.cost.interleaved import SideBySide
from gendistill.metrics.pairs.paired import PairedTest
from gendistill.metrics.protocol import Evaluation


@dataclass(frozen=True)
class GeneratorComparison:
    """A student's row and its teacher's; without a student, the teacher's alone.

    Attributes:
        times: side by side, a batch size each.
        test: whether the distances differ, picture by picture; None without a student.
        warnings: what to know before trusting the figures.
        requested: names of the metrics that were asked for.
    """

    student: list[Evaluation]
    teacher: list[Evaluation]
    times: list[SideBySide]
    test: PairedTest | None
    warnings: list[str]
    files: list[Path] = field(default_factory=list)
    requested: Sequence[str] | None = None

    @property
    def fd_ratio(self) -> float | None:
        """The student's distance from real pictures over the teacher's; 1 is as good."""
        if not self.student:
            return None
        metric = self.student[0].protocol.metric
        return self.student[0].scores[metric] / self.teacher[0].scores[metric]

    @property
    def compression(self) -> dict[str, float]:
        """How many times fewer multiply-accumulates and parameters; none without a student."""
        if not self.student:
            return {}
        ours, theirs = self.student[0].costs, self.teacher[0].costs
        return {name: theirs[name] / ours[name] for name in ("macs", "parameters") if ours[name]}

    @property
    def speed_up(self) -> dict[int, float]:
        """How many times faster the student is, by batch size."""
        if not self.student:
            return {}
        names = self.student[0].model, self.teacher[0].model
        return {of.batch_size: of.speed_up(*names) for of in self.times}

    def table(self) -> TerminalTable:
        """For the terminal: a line a model, the teacher first; below, what the student gains and loses."""
        rows = [*self.teacher, *self.student]
        metric = rows[0].protocol.metric
        costs: Cells = {
            "MMACs": lambda row: f"{row.costs['macs'] / 1e6:.3g}",
            "M params": lambda row: f"{row.costs['parameters'] / 1e6:.3g}",
            **{f"ms by {of.batch_size}": _seconds_by(of.batch_size) for of in self.times},
        }
        title, model = f"{metric} on {rows[0].protocol.prompts}", {"model": lambda row: row.model}
        table = terminal_table(title, rows, model, summary_names(rows, self.requested), costs, bold=self.student)
        if self.fd_ratio is not None:
            faster = " and ".join(f"{of:.1f}× as fast by {size}" for size, of in self.speed_up.items())
            table.caption, table.caption_justify = f"{metric} {self.fd_ratio:.2f}× the teacher's; {faster}", "left"
        return table

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
                "fd_ratio": self.fd_ratio,
                "compression": self.compression,
                "speed_up": self.speed_up,
                "side_by_side": [dataclasses.asdict(of) for of in self.times],
                "test": self.test and dataclasses.asdict(self.test),
                "warnings": self.warnings,
            },
            indent=1,
            default=float,
        )


def _seconds_by(size: int) -> Callable[[Evaluation], str]:
    return lambda row: f"{1000 * row.costs[f'seconds_by_{size}']:.2f}"


@dataclass(frozen=True, eq=False)
class GeneratorImages:
    """What the page shows, uint8, by model, the teacher first.

    Attributes:
        captions: of the pictures of a grid, or none.
        grids: (N, 3, H, W) from the same noise.
        rows: what each strip shows all the way; none where there are no strips.
        strips: (rows * count, 3, H, W), strip after strip.
    """

    captions: list[str]
    grids: Mapping[str, Tensor]
    rows: list[str]
    strips: Mapping[str, Tensor]


def write_report(path: Path, comparison: GeneratorComparison, pictures: GeneratorImages, told: Mapping[str, Any]) -> None:
    """report.html: headline figures, both rows, what a picture costs, grids from the same noise and strips between noises.

    Args:
        told: what the student's folder says of how it was made.
    """
    (teacher,), (student,), times = comparison.teacher, comparison.student, comparison.times
    protocol = student.protocol
    page = Page(
        f"{told.get('method', 'gan')} student of {teacher.model}",
        [
            _figures(comparison),
            _costs(teacher, student, times),
            *_shown(pictures),
            _made(told, protocol.describe()),
        ],
        subtitle=f"{protocol.prompts}; against {protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


def _figures(comparison: GeneratorComparison) -> PageSection:
    (teacher,), (student,), last = comparison.teacher, comparison.student, comparison.times[-1]
    metric = teacher.protocol.metric
    speed = last.speed_up(student.model, teacher.model)
    ratio = f"{student.scores[metric]:.2f} to {teacher.scores[metric]:.2f}"
    cards = [
        Card(f"{comparison.fd_ratio:.2f}×", f"the teacher's {metric}", ratio, 1),
        Card(f"{speed:.1f}×", f"as fast, {last.batch_size} together", _between(last, student.model, teacher.model)),
    ]
    for name, words in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if gain := _gain(teacher, student, name):
            shrunk = f"{_millions(teacher.costs[name])} to {_millions(student.costs[name])}"
            cards.append(Card(gain, f"fewer {words}", f"{shrunk}{' a picture' * (name == 'macs')}"))
    names = score_names([teacher, student])
    columns = [Column("score", align="left"), *(Column(of.model) for of in (teacher, student))]
    rows = []
    for column, name in zip(map(score_column, names), names, strict=True):
        arrow = "↑" if column.better == "higher" else "↓"
        cells = _with_best([score_cell(of, name) for of in (teacher, student)], column.better)
        rows.append(TableRow([f"{column.name} {arrow}", *cells]))
    blocks: list[Block] = [Cards(cards), *(Notice(text) for text in comparison.warnings), Table(columns, rows, INTERVALS)]
    blocks.append(explanations(names))
    if comparison.test is not None:
        blocks.append(Text(f"{metric}: {comparison.test.describe(student.model, teacher.model)}"))
    return PageSection("Figures", blocks)


def _costs(teacher: Evaluation, student: Evaluation, times: Sequence[SideBySide]) -> PageSection:
    columns = [
        Column("model", align="left"),
        Column("MACs, M", "Multiply-accumulates of one picture, in millions.", "lower"),
        Column("parameters, M", "In millions.", "lower"),
        *(
            Column(f"ms by {of.batch_size}", f"A picture, of {of.batch_size} drawn together; the median.", "lower")
            for of in times
        ),
    ]
    rows = []
    for colour, of in enumerate((teacher, student)):
        cells = [Cell(of.model, colour=colour)]
        cells += [Cell(f"{of.costs[name] / 1e6:.3g}", value=of.costs[name]) for name in ("macs", "parameters")]
        seconds = [timed.seconds_per_picture(of.model) for timed in times]
        cells += [Cell(f"{1000 * value:.2f}", value=value) for value in seconds]
        rows.append(TableRow(cells, highlight=of is student))
    names = student.model, teacher.model
    gained = [Cell(_gain(teacher, student, name, digits=2)) for name in ("macs", "parameters")]
    gained += [Cell(f"{of.speed_up(*names):.2f}×", _between(of, *names)) for of in times]
    rows.append(TableRow([Cell("gain"), *gained]))
    lead = "Timed turn and turn about in one run; beside a speed-up the quartiles of its rounds."
    return PageSection("What a picture costs", [Table(columns, rows)], lead)


def _shown(pictures: GeneratorImages) -> list[PageSection]:
    names = list(pictures.grids)
    grids = [Gallery(name, pictures.grids[name], pictures.captions, colour=names.index(name)) for name in names]
    sections = [
        PageSection(
            "The same noise", [Galleries(grids)], "Picture k is of the same class and seed in both; the first ones, not chosen."
        )
    ]
    if pictures.rows:
        count = len(pictures.strips[names[0]]) // len(pictures.rows)
        strips = [Gallery(name, pictures.strips[name], colour=names.index(name)) for name in names]
        lead = (
            "Each row is of one class and goes from one noise to another, in equal steps on the great circle between them. "
            "A generator that has learned more than examples changes little by little."
        )
        told = "; ".join(f"{number + 1}. {row}" for number, row in enumerate(pictures.rows) if row)
        rows = [Text(f"Rows: {told}.")] if told else []
        sections.append(PageSection("Between two noises", [Galleries(strips, columns=count), *rows], lead))
    return sections


def _made(told: Mapping[str, Any], protocol: str) -> PageSection:
    facts = [(name.replace("_", " "), str(value)) for name, value in told.items() if isinstance(value, str | int | float)]
    blocks: list[Block] = [Details("How the figures were made", protocol, opened=True)]
    return PageSection("Protocol", [*blocks, Details("What the student's folder says of it", facts)] if facts else blocks)


def _with_best(cells: list[Cell], way: str | None) -> list[Cell]:
    """The better of two marked; neither where they are equal or one is missing."""
    first, second = (cell.value for cell in cells)
    if first is None or second is None or first == second:
        return cells
    wins = (first > second) == (way == "higher")
    return [dataclasses.replace(cell, best=best) for cell, best in zip(cells, (wins, not wins), strict=True)]


def _gain(teacher: Evaluation, student: Evaluation, name: str, digits: int = 1) -> str:
    """How many times less the student costs; empty of what could not be counted, as operations inside a program."""
    ours, theirs = student.costs[name], teacher.costs[name]
    return f"{theirs / ours:.{digits}f}×" if ours and theirs else ""


def _between(times: SideBySide, student: str, teacher: str) -> str:
    return "{:.1f}–{:.1f}".format(*times.speed_up_between(student, teacher))


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} M"
