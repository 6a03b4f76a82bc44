"""Scores as cells of a page's table and of a terminal's: what the registry says of each, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from gendistill.evaluation.reporting import Cell, Column, Details
from gendistill.metrics.protocol import Evaluation
from gendistill.metrics.registry import higher_is_better, metric_of

Cells = Mapping[str, Callable[[Evaluation], str]]  # by column
INTERVALS = "Beside a value its 95 % interval; ∞ marks one for infinitely many images, which need not hold the value."


def score_names(rows: Iterable[Evaluation]) -> list[str]:
    """Reported names of all scores of some rows."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def summary_names(rows: Iterable[Evaluation], requested: Sequence[str] | None) -> list[str]:
    """Those that a short table shows: what the registry says belongs there, and what was asked for by name."""
    found = [(name, metric_of(name)) for name in score_names(rows)]
    return [name for name, metric in found if metric is None or metric.in_summary or metric.name in (requested or ())]


def score_column(name: str) -> Column:
    metric = metric_of(name)
    return Column(score_label(name), metric.explanation if metric else "", "higher" if higher_is_better(name) else "lower")


def score_label(name: str) -> str:
    """Of a column: the metric's label, or the reported name, with the factor that its values are shown with."""
    metric = metric_of(name)
    if metric is None:
        return name
    return (metric.label or name) + (f" ×{metric.scale:g}" if metric.scale != 1 else "")


def score_cell(row: Evaluation, name: str) -> Cell:
    """A score with its interval; empty where the row has none."""
    value, interval, metric = row.scores.get(name), row.intervals.get(name), metric_of(name)
    if value is None:
        return Cell("")
    scale, digits = (metric.scale, metric.digits) if metric else (1, 2)
    at_infinity = "∞ " if metric and metric.interval_at_infinity else ""
    small = "" if interval is None else at_infinity + "–".join(f"{scale * end:.{digits}f}" for end in interval)
    return Cell(f"{scale * value:.{digits}f}", small, value)


def explanations(names: Iterable[str]) -> Details:
    """What the scores mean, for the end of a page or of a section."""
    found = [(score_label(name), metric.explanation) for name in names if (metric := metric_of(name))]
    return Details("What the scores mean", found)


def terminal_table(
    title: str,
    rows: Sequence[Evaluation],
    before: Cells,
    scores: Sequence[str],
    after: Cells,
    bold: Sequence[Evaluation] = (),
) -> TerminalTable:
    """A line per row: columns, then scores with the interval of the first, the distance that decides, then more columns."""
    table = TerminalTable(title=title, title_justify="left", box=SIMPLE_HEAD)
    labels = [score_label(name) for name in scores]
    for column in (*before, *labels[:1], "95 %", *labels[1:], *after):
        table.add_column(column, justify="left" if column in ("model", "sampler") else "right")
    for row in rows:
        decides, *others = (score_cell(row, name) for name in scores)
        figures = [decides.text, decides.small, *(cell.text for cell in others)]
        cells = [*(cell(row) for cell in before.values()), *figures, *(cell(row) for cell in after.values())]
        table.add_row(*cells, style="bold" if any(row is one for one in bold) else "")
    return table
