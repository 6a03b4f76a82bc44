"""The comparison of a GAN's student with its teacher as a table and as a page with image grids and interpolations."""

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


@dataclass(frozen=True)
class GeneratorComparison:
    """The rows of a student and its teacher; without a student, the teacher's row.

    Attributes:
        times: alternating timings of both models, one per batch size.
        test: paired test of the distances; None without a student.
        warnings: reasons to doubt the figures.
        requested: names of the requested metrics.
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
        """The student's distance from real images divided by the teacher's; 1 means equal quality."""
        if not self.student:
            return None
        metric = self.student[0].protocol.metric
        return self.student[0].scores[metric] / self.teacher[0].scores[metric]

    @property
    def compression(self) -> dict[str, float]:
        """The teacher's multiply-accumulates and parameters divided by the student's; empty without a student."""
        if not self.student:
            return {}
        costs, teacher_costs = self.student[0].costs, self.teacher[0].costs
        return {name: teacher_costs[name] / costs[name] for name in ("macs", "parameters") if costs[name]}

    @property
    def speed_up(self) -> dict[int, float]:
        """The student's speed as a multiple of the teacher's, by batch size."""
        if not self.student:
            return {}
        names = self.student[0].model, self.teacher[0].model
        return {timing.batch_size: timing.speed_up(*names) for timing in self.times}

    @property
    def rows(self) -> list[Evaluation]:
        """The teacher's row, then the student's."""
        return [*self.teacher, *self.student]

    def figures(self, scores: Sequence[str]) -> PageTable:
        """One table row per model with its scores and costs per image; the better value of each column is marked."""
        cells: Cells = {
            Column("model", align="left"): lambda row: Cell(row.model, colour=self.rows.index(row)),
            **score_cells(scores),
            Column("MACs, M", "Multiply-accumulates per image, in millions.", "lower"): _cost("macs", 1e-6, "{:.3g}"),
            Column("parameters, M", "Parameters in millions.", "lower"): _cost("parameters", 1e-6, "{:.3g}"),
        }
        for size in (timing.batch_size for timing in self.times):
            explanation = f"Median time per image at batch size {size}; both models are timed alternately."
            column = Column(f"ms, batch {size}", explanation, "lower")
            cells = {**cells, column: _cost(f"seconds_by_{size}", 1000, "{:.2f}")}
        return score_table(self.rows, cells, highlight=lambda row: row in self.student).with_best()

    def table(self) -> TerminalTable:
        """The table for the terminal; its caption gives the student's relative distance and speed."""
        protocol = self.teacher[0].protocol
        figures = self.figures(summary_names(self.rows, self.requested))
        table = terminal_table(f"{protocol.metric} on {protocol.prompts}", figures, protocol.metric)
        if self.fd_ratio is not None:
            faster = " and ".join(f"{factor:.1f}× as fast at batch size {size}" for size, factor in self.speed_up.items())
            table.caption, table.caption_justify = f"{protocol.metric} {self.fd_ratio:.2f}× the teacher's; {faster}", "left"
        return table

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
                "fd_ratio": self.fd_ratio,
                "compression": self.compression,
                "speed_up": self.speed_up,
                "side_by_side": [dataclasses.asdict(timing) for timing in self.times],
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
    """The images of the page, uint8, by model, the teacher first.

    Attributes:
        captions: captions of a grid's images; empty for an unconditional generator.
        grids: images (N, 3, H, W) from the same noise.
        rows: class of each strip; empty without strips.
        strips: images (rows * count, 3, H, W), strip by strip.
    """

    captions: list[str]
    grids: Mapping[str, Tensor]
    rows: list[str]
    strips: Mapping[str, Tensor]


def write_report(path: Path, comparison: GeneratorComparison, images: GeneratorImages, provenance: Mapping[str, Any]) -> None:
    """report.html: headline figures, both rows, costs per image, grids from the same noise and interpolations between noises.

    Args:
        provenance: the student's metadata in its folder.
    """
    protocol = comparison.teacher[0].protocol
    facts = [(name.replace("_", " "), str(value)) for name, value in provenance.items() if isinstance(value, str | int | float)]
    folder = [Details("Provenance of the student", facts)] if facts else []
    page = Page(
        f"{provenance.get('method', 'gan')} student of {comparison.teacher[0].model}",
        [_figures(comparison), *_shown(images), protocol_section(comparison.student[0], *folder)],
        subtitle=f"{protocol.prompts}; against {protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


def _figures(comparison: GeneratorComparison) -> PageSection:
    (teacher,), (student,) = comparison.teacher, comparison.student
    metric, names = teacher.protocol.metric, score_names(comparison.rows)
    values = f"student {student.scores[metric]:.2f}, teacher {teacher.scores[metric]:.2f}"
    cards = [Card(f"{comparison.fd_ratio:.2f}×", f"the teacher's {metric}", values, 1)]
    for timing in comparison.times:
        quartiles = "quartiles {:.1f} to {:.1f}".format(*timing.speed_up_between(student.model, teacher.model))
        size = timing.batch_size
        cards.append(Card(f"{comparison.speed_up[size]:.1f}×", f"as fast at batch size {size}", quartiles))
    for name, words in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if gain := comparison.compression.get(name):  # missing if it could not be counted, as in an exported program
            values = f"student {student.costs[name] / 1e6:.3g} M, teacher {teacher.costs[name] / 1e6:.3g} M"
            cards.append(Card(f"{gain:.1f}×", f"fewer {words}", values))
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
            "The same noise",
            [Galleries(grids)],
            "Image k has the same class and seed in both grids. The first images are shown, without selection.",
        )
    ]
    if images.rows:
        count = len(images.strips[names[0]]) // len(images.rows)
        strips = [Gallery(name, images.strips[name], colour=names.index(name)) for name in names]
        lead = (
            "Each row shows one class and spherical interpolations between two noise vectors, in equal steps. "
            "The images of a generator that has not memorised its training images change gradually."
        )
        classes = "; ".join(f"{number + 1}. {row}" for number, row in enumerate(images.rows) if row)
        rows = [Text(f"Rows: {classes}.")] if classes else []
        sections.append(PageSection("Interpolations", [Galleries(strips, columns=count), *rows], lead))
    return sections
