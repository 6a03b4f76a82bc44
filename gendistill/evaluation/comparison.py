"""The result of a comparison: rows, tests of their differences, and each student's regressions and fit to the teacher."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gendistill.evaluation.audited import ModelImages
from gendistill.evaluation.entries import ModelEntry
from gendistill.evaluation.evaluator import EvaluatedModel, Evaluator
from gendistill.evaluation.fit import Fit
from gendistill.evaluation.fit_report import as_json
from gendistill.evaluation.regressions import RegressionAnalysis
from gendistill.evaluation.reporting.colours import colour_numbers
from gendistill.evaluation.reporting.page import Cell, Column, TableRow
from gendistill.evaluation.reporting.page import Table as PageTable
from gendistill.evaluation.score_cells import INTERVALS, Cells, score_cells, score_table, summary_names, terminal_table
from gendistill.metrics.cost.efficiency import Costs
from gendistill.metrics.pairs.paired import PairedTest
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.notebook import table_html

FILE_NAME = "comparison.json"


@dataclass(frozen=True)
class RowTest:
    """A paired test of the difference of two rows in a score."""

    a: str
    b: str
    score: str
    test: PairedTest


@dataclass(frozen=True)
class ComparisonRow:
    """One model at one step count."""

    entry: ModelEntry
    steps: int
    evaluated: EvaluatedModel
    costs: Costs

    @property
    def evaluation(self) -> Evaluation:
        return self.evaluated.evaluation

    @property
    def memory(self) -> int | None:
        """Bytes of the weights and of the working memory for sampling one image, without other memory of the process."""
        peak = self.costs.peak_memory
        return None if peak is None else self.costs.parameter_bytes + peak.working

    @property
    def images(self) -> ModelImages:
        model = self.entry
        return ModelImages(model.name, model.samplers[self.steps], self.steps, model.guidance_scale, self.evaluated.images)


@dataclass(frozen=True)
class ModelComparison:
    """The result of a comparison of models.

    Attributes:
        rows: rows in the order of the models, most steps first. The first row is the baseline.
        regressions: regressions by student name.
        fits: fits to the teacher by student name, for diffusion models.
        warnings: reasons to doubt the figures.
    """

    evaluator: Evaluator
    rows: list[ComparisonRow]
    tests: list[RowTest]
    regressions: dict[str, RegressionAnalysis]
    fits: dict[str, Fit]
    warnings: list[str]
    files: list[Path] = dataclasses.field(default_factory=list)

    @property
    def evaluations(self) -> list[Evaluation]:
        return [row.evaluation for row in self.rows]

    @property
    def baseline(self) -> ComparisonRow:
        return self.rows[0]

    @property
    def colours(self) -> dict[str, int]:
        """The models' colour numbers by name: 0 is the teacher."""
        names, baseline = [row.entry.name for row in self.rows], self.baseline.entry
        return colour_numbers(names, reference=None if baseline.is_student else baseline.name)

    def figures(self, scores: Sequence[str]) -> PageTable:
        """One table row per row with its scores, time and memory; the best of each column is marked."""
        colours, kinds = self.colours, {row.evaluation.label: _kind(row) for row in self.rows}
        students = [row.entry.name for row in self.rows if row.entry.is_student]
        cells: Cells = {
            Column("model", align="left"): lambda row: Cell(row.model, colour=colours[row.model]),
            Column("steps"): lambda row: str(row.steps),
            Column("calls", "Network calls per image; a guided step takes two."): lambda row: str(row.network_calls),
            **score_cells(scores),
            Column("ms", "Median time of one image at batch size 1, after warm-up.", "lower"): lambda row: Cell(
                milliseconds(row.costs["latency_seconds"]), value=row.costs["latency_seconds"]
            ),
            Column("MB", "Weights and the working memory for one image.", "lower"): lambda row: (
                Cell(f"{row.costs['memory_bytes'] / 1e6:.0f}", value=row.costs["memory_bytes"])
                if "memory_bytes" in row.costs
                else ""
            ),
        }
        caption = f"{INTERVALS} The best of a column is marked."
        table = score_table(
            self.evaluations,
            cells,
            caption,
            highlight=lambda row: row.model in students,
            group=lambda row: kinds[row.label],
        )
        return table.with_best()

    def table(self) -> Table:
        """The table for the terminal."""
        figures = self.figures(summary_names(self.evaluations, self.evaluator.requested))
        return terminal_table(f"{self.evaluator.metric} on {self.evaluator.prompt_source}", figures, self.evaluator.metric)

    def fit_table(self) -> Table | None:
        """The students' fits to the teacher for the terminal; None if none was measured."""
        if not self.fits:
            return None
        add_ons = [f"{add_on.kind} {add_on.name}: effect kept" for add_on in next(iter(self.fits.values())).add_ons]
        names = ("steps", "cosine of latents", "Procrustes", "CKA", *add_ons)
        rows = []
        for name, fit in self.fits.items():
            effects = [add_on.effect.kept if add_on.effect else None for add_on in fit.add_ons]
            values = [fit.latents.cosine, fit.latents.procrustes, fit.mean_cka, *effects]
            figures = ["–" if value is None else f"{value:.3f}" for value in values]
            rows.append(TableRow.from_cells(name, str(fit.sampling["student"][0]), *figures))
        title = f"does it still fit? As a replacement of {self.baseline.entry.name}"
        return terminal_table(title, PageTable([Column("model", align="left"), *map(Column, names)], rows))

    def _repr_html_(self) -> str:
        return table_html(self.table(), self.files)

    def to_json(self) -> str:
        rows = [{**dataclasses.asdict(row.evaluation), "measured_costs": row.costs.to_dict()} for row in self.rows]
        tests = [dataclasses.asdict(test) for test in self.tests]
        regressions = {name: dataclasses.asdict(analysis) for name, analysis in self.regressions.items()}
        fits = {name: as_json(fit) for name, fit in self.fits.items()}
        fields = {"rows": rows, "tests": tests, "breakage": regressions, "fits": fits, "warnings": self.warnings}
        return json.dumps(fields, indent=1, default=float)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with one decimal below 10."""
    return f"{1000 * seconds:.{1 if seconds < 0.00995 else 0}f}"


def _kind(row: ComparisonRow) -> str:
    """The row's group in the table: the model's name, its distillation method or solver, and its guidance scale."""
    model = row.entry
    method = model.samplers[row.steps].method
    guidance = f", guidance {model.guidance_scale:g}" if model.guidance_scale > 1 else ""
    return f"{model.name}: {f'{method} student' if method else model.solver(row.steps)}{guidance}"


def main_rows(rows: list[ComparisonRow]) -> list[ComparisonRow]:
    """The main row of every student: 4 steps if it has such a row, else its default step count."""
    if rows[0].entry.is_student:
        return []
    names = dict.fromkeys(row.entry.name for row in rows if row.entry.is_student)
    return [_main_row([row for row in rows if row.entry.name == name]) for name in names]


def _main_row(rows: list[ComparisonRow]) -> ComparisonRow:
    own = rows[0].entry.samplers[rows[0].steps].default_steps
    wanted = 4 if any(row.steps == 4 for row in rows) else own
    return next((row for row in rows if row.steps == wanted), rows[0])
