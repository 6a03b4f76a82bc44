"""Scores as a table for a page and for a terminal, with labels, scales and explanations from the metric registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from gendistill.evaluation.reporting.page import Cell, Column, Details, PageSection, Table, TableRow
from gendistill.metrics.protocol import Evaluation
from gendistill.metrics.registry import higher_is_better, metric_of

Cells = Mapping[Column, Callable[[Evaluation], Cell | str]]  # a row's cells by column
INTERVALS = "Small figures are 95 % intervals; ∞ marks an interval for infinitely many images, which may not contain the value."


def score_names(rows: Iterable[Evaluation]) -> list[str]:
    """Reported names of all scores of the rows."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def summary_names(rows: Iterable[Evaluation], requested: Sequence[str] | None) -> list[str]:
    """Scores of a short table: the summary scores of the registry, and the requested ones."""
    metrics = [(name, metric_of(name)) for name in score_names(rows)]
    return [name for name, metric in metrics if metric is None or metric.in_summary or metric.name in (requested or ())]


def score_cells(names: Iterable[str]) -> dict[Column, Callable[[Evaluation], Cell]]:
    """One column per score."""
    return {_score_column(name): partial(_score_cell, name) for name in names}


def _score_column(name: str) -> Column:
    metric = metric_of(name)
    return Column(score_label(name), metric.explanation if metric else "", "higher" if higher_is_better(name) else "lower")


def score_label(name: str) -> str:
    """Column title of a score: the metric's label, or the reported name, with the factor by which its values are scaled."""
    metric = metric_of(name)
    if metric is None:
        return name
    return (metric.label or name) + (f" ×{metric.scale:g}" if metric.scale != 1 else "")


def _score_cell(name: str, row: Evaluation) -> Cell:
    """A score with its interval; empty if the row lacks the score."""
    value, interval, metric = row.scores.get(name), row.intervals.get(name), metric_of(name)
    if value is None:
        return Cell("")
    scale, digits = (metric.scale, metric.digits) if metric else (1, 2)
    at_infinity = "∞ " if metric and metric.interval_at_infinity else ""
    small = "" if interval is None else at_infinity + "–".join(f"{scale * end:.{digits}f}" for end in interval)
    return Cell(f"{scale * value:.{digits}f}", small, value)


def score_table(
    rows: Sequence[Evaluation],
    cells: Cells,
    caption: str = INTERVALS,
    *,
    highlight: Callable[[Evaluation], bool] = lambda row: False,
    group: Callable[[Evaluation], str] = lambda row: "",
) -> Table:
    """One table row per evaluation."""
    lines = [
        TableRow.from_cells(*(cell(row) for cell in cells.values()), highlight=highlight(row), group=group(row)) for row in rows
    ]
    return Table(list(cells), lines, caption)


def terminal_table(title: str, table: Table, metric: str = "") -> TerminalTable:
    """A page's table for the terminal, with the interval of one score, the primary metric."""
    shown = TerminalTable(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in table.columns:
        shown.add_column(column.name, justify=column.align)
        if column.name == score_label(metric):
            shown.add_column("95 %", justify="right")
    for row in table.rows:
        texts = []
        for column, cell in zip(table.columns, row.cells, strict=True):
            texts += [cell.text, cell.small] if column.name == score_label(metric) else [cell.text]
        shown.add_row(*texts, style="bold" if row.highlight else "")
    return shown


def explanations(names: Iterable[str]) -> Details:
    """Explanations of the scores, for the end of a page or of a section."""
    facts = [(score_label(name), metric.explanation) for name in names if (metric := metric_of(name))]
    return Details("What the scores mean", facts)


def protocol_section(row: Evaluation, *more: Details) -> PageSection:
    """The evaluation protocol of a page."""
    protocol = row.protocol
    facts = [
        ("extractor", f"{protocol.extractor} ({protocol.weights_hash})"),
        ("images", f"{protocol.num_samples:,}, {protocol.resize}"),
        ("prompts", f"{protocol.prompts}, seed {protocol.seed}"),
        ("reference", f"{protocol.reference}, {protocol.reference_count} images ({protocol.reference_hash})"),
        ("CLIP", f"{protocol.clip_model} ({protocol.clip_weights_hash})" if protocol.clip_model else "none"),
        ("intervals", "95 %, bootstrap over sampled images; distances corrected for their bias in finite sets"),
        ("names", "A distance is named after the network that extracts its features: no two networks share a name."),
        ("versions", ", ".join(f"{name} {version}" for name, version in protocol.versions.items())),
    ]
    return PageSection("Protocol", [Details("How the figures were measured", facts, opened=True), *more])
