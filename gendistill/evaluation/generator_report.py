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

from gendistill.evaluation.reporting.page import (
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
    Text,
    write_page,
)
from gendistill.evaluation.reporting.page import Table as PageTable
from gendistill.evaluation.score_cells import (
    Cells,
    explanations,
    protocol_section,
    score_cells,
    score_names,
    score_table,
    summary_names,
    terminal_table,
)
from gendistill.metrics.cost.interleaved import SideBySide
from gendistill.metrics.pairs.paired import PairedTest
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.notebook import table_html


@dataclass(frozen=True)
class GeneratorComparison:
    """A student's row and its teacher's; without a student, the teacher's alone.

    Attributes:
        times: side by side, a batch size each.
        test: whether the distances differ, image by image; None without a student.
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
        """The student's distance from real images over the teacher's; 1 is as good."""
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

    @property
    def rows(self) -> list[Evaluation]:
        """The teacher's and the student's."""
        return [*self.teacher, *self.student]

    def figures(self, scores: Sequence[str]) -> PageTable:
        """A line a model, its scores and what an image costs, the better of two marked."""
        cells: Cells = {
            Column("model", align="left"): lambda row: Cell(row.model, colour=self.rows.index(row)),
            **score_cells(scores),
            Column("MACs, M", "Multiply-accumulates of one image, in millions.", "lower"): _cost("macs", 1e-6, "{:.3g}"),
            Column("parameters, M", "In millions.", "lower"): _cost("parameters", 1e-6, "{:.3g}"),
        }
        for of in self.times:
            explained = f"An image, of {of.batch_size} sampled together; the median, timed turn and turn about."
            column = Column(f"ms by {of.batch_size}", explained, "lower")
            cells = {**cells, column: _cost(f"seconds_by_{of.batch_size}", 1000, "{:.2f}")}
        return score_table(self.rows, cells, highlight=lambda row: row in self.student).with_best()

    def table(self) -> TerminalTable:
        """For the terminal; below, what the student gains and loses."""
        protocol = self.teacher[0].protocol
        figures = self.figures(summary_names(self.rows, self.requested))
        table = terminal_table(f"{protocol.metric} on {protocol.prompts}", figures, protocol.metric)
        if self.fd_ratio is not None:
            faster = " and ".join(f"{of:.1f}× as fast by {size}" for size, of in self.speed_up.items())
            table.caption, table.caption_justify = f"{protocol.metric} {self.fd_ratio:.2f}× the teacher's; {faster}", "left"
        return table

    def _repr_html_(self) -> str:
        return table_html(self.table(), self.files)

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


def _cost(name: str, scale: float, text: str) -> Callable[[Evaluation], Cell]:
    return lambda row: Cell(text.format(scale * row.costs[name]), value=row.costs[name])


@dataclass(frozen=True, eq=False)
class GeneratorImages:
    """What the page shows, uint8, by model, the teacher first.

    Attributes:
        captions: of the images of a grid, or none.
        grids: (N, 3, H, W) from the same noise.
        rows: what each strip shows all the way; none where there are no strips.
        strips: (rows * count, 3, H, W), strip after strip.
    """

    captions: list[str]
    grids: Mapping[str, Tensor]
    rows: list[str]
    strips: Mapping[str, Tensor]


def write_report(path: Path, comparison: GeneratorComparison, images: GeneratorImages, told: Mapping[str, Any]) -> None:
    """report.html: headline figures, both rows, what an image costs, grids from the same noise and strips between noises.

    Args:
        told: what the student's folder says of how it was made.
    """
    protocol = comparison.teacher[0].protocol
    facts = [(name.replace("_", " "), str(value)) for name, value in told.items() if isinstance(value, str | int | float)]
    folder = [Details("What the student's folder says of it", facts)] if facts else []
    page = Page(
        f"{told.get('method', 'gan')} student of {comparison.teacher[0].model}",
        [_figures(comparison), *_shown(images), protocol_section(comparison.student[0], *folder)],
        subtitle=f"{protocol.prompts}; against {protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


def _figures(comparison: GeneratorComparison) -> PageSection:
    (teacher,), (student,) = comparison.teacher, comparison.student
    metric, names = teacher.protocol.metric, score_names(comparison.rows)
    ratio = f"{student.scores[metric]:.2f} to {teacher.scores[metric]:.2f}"
    cards = [Card(f"{comparison.fd_ratio:.2f}×", f"the teacher's {metric}", ratio, 1)]
    for of in comparison.times:
        quartiles = "{:.1f}–{:.1f}, the quartiles of the rounds".format(*of.speed_up_between(student.model, teacher.model))
        cards.append(Card(f"{comparison.speed_up[of.batch_size]:.1f}×", f"as fast, {of.batch_size} together", quartiles))
    for name, words in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if gain := comparison.compression.get(name):  # none of what could not be counted, as operations inside a program
            shrunk = f"{teacher.costs[name] / 1e6:.3g} M to {student.costs[name] / 1e6:.3g} M"
            cards.append(Card(f"{gain:.1f}×", f"fewer {words}", shrunk))
    blocks: list[Block] = [Cards(cards), *(Notice(text) for text in comparison.warnings)]
    blocks += [comparison.figures(names), explanations(names)]
    if comparison.test is not None:
        blocks.append(Text(f"{metric}: {comparison.test.describe(student.model, teacher.model)}"))
    return PageSection("Figures", blocks)


def _shown(images: GeneratorImages) -> list[PageSection]:
    names = list(images.grids)
    grids = [Gallery(name, images.grids[name], images.captions, colour=names.index(name)) for name in names]
    sections = [
        PageSection(
            "The same noise", [Galleries(grids)], "Image k is of the same class and seed in both; the first ones, not chosen."
        )
    ]
    if images.rows:
        count = len(images.strips[names[0]]) // len(images.rows)
        strips = [Gallery(name, images.strips[name], colour=names.index(name)) for name in names]
        lead = (
            "Each row is of one class and goes from one noise to another, in equal steps on the great circle between them. "
            "A generator that has learned more than examples changes little by little."
        )
        told = "; ".join(f"{number + 1}. {row}" for number, row in enumerate(images.rows) if row)
        rows = [Text(f"Rows: {told}.")] if told else []
        sections.append(PageSection("Between two noises", [Galleries(strips, columns=count), *rows], lead))
    return sections
