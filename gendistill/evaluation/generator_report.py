"""A GAN's student beside its teacher: a table for the terminal, and a page with grids and strips side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
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
    Page,
    Row,
    Section,
    Table,
    Text,
    Warning,
    write_page,
)
from gendistill.evaluation.score_cells import EXPLAINED, better, score_cell, short_name
from gendistill.metrics.cost.interleaved import SideBySide
from gendistill.metrics.evaluate import Evaluation
from gendistill.metrics.pairs.paired import PairedTest

TERMINAL_SCORES = (("clip_score", 1), ("precision", 2), ("recall", 2), ("coverage", 2), ("psnr", 1), ("feature_cosine", 3))
TERMINAL_NAMES = {"clip_score": "CLIP", "psnr": "PSNR", "feature_cosine": "cosine"}


@dataclass(frozen=True, eq=False)
class Pictures:
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


def results_table(rows: Sequence[Evaluation], ratio: float | None, speed_up: Mapping[int, float]) -> TerminalTable:
    """A line a model, the teacher first; below, what the student gains and loses."""
    metric = rows[0].protocol.metric
    table = TerminalTable(title=f"{metric} on {rows[0].protocol.prompts}", title_justify="left", box=SIMPLE_HEAD)
    scores = [(name, digits) for name, digits in TERMINAL_SCORES if any(name in row.scores for row in rows)]
    sizes = _batch_sizes(rows[0])
    names = [TERMINAL_NAMES.get(name, name) for name, _ in scores]
    for name in ("model", metric, "", *names, "MMACs", "M params", *(f"ms by {size}" for size in sizes)):
        table.add_column(name, justify="left" if name == "model" else "right")
    for number, row in enumerate(rows):
        interval = row.intervals.get(metric)
        table.add_row(
            row.model,
            f"{row.scores[metric]:.2f}",
            "" if interval is None else "{:.2f} to {:.2f}".format(*interval),
            *(f"{row.scores[name]:.{digits}f}" if name in row.scores else "" for name, digits in scores),
            f"{row.costs['macs'] / 1e6:.3g}",
            f"{row.costs['parameters'] / 1e6:.3g}",
            *(f"{1000 * row.costs[f'seconds_by_{size}']:.2f}" for size in sizes),
            style="bold" if number else "",
        )
    if ratio is not None:
        table.caption = f"{metric} {ratio:.2f}× the teacher's; {_faster(speed_up)}"
        table.caption_justify = "left"
    return table


def write_report(
    path: Path,
    teacher: Evaluation,
    student: Evaluation,
    times: Sequence[SideBySide],
    test: PairedTest,
    warnings: Sequence[str],
    pictures: Pictures,
    told: Mapping[str, Any],
) -> None:
    """report.html: headline figures, both rows, what a picture costs, grids from the same noise and strips between noises.

    Args:
        told: what the student's folder says of how it was made.
    """
    protocol = student.protocol
    page = Page(
        f"{told.get('method', 'gan')} student of {teacher.model}",
        [
            _figures(teacher, student, times, test, warnings),
            _costs(teacher, student, times),
            *_shown(pictures),
            _made(told, protocol.describe()),
        ],
        subtitle=f"{protocol.prompts}; against {protocol.reference}.",
        footer="Written by gendistill evaluate.",
    )
    write_page(page, path)


def _figures(
    teacher: Evaluation, student: Evaluation, times: Sequence[SideBySide], test: PairedTest, warnings: Sequence[str]
) -> Section:
    metric = teacher.protocol.metric
    ours, theirs = student.scores[metric], teacher.scores[metric]
    last = times[-1]
    speed = last.speed_up(student.model, teacher.model)
    cards = [
        Card(f"{ours / theirs:.2f}×", f"the teacher's {metric}", f"{ours:.2f} to {theirs:.2f}", 1),
        Card(f"{speed:.1f}×", f"as fast, {last.batch_size} together", _between(last, student.model, teacher.model)),
    ]
    for name, words in (("macs", "multiply-accumulates"), ("parameters", "parameters")):
        if gain := _gain(teacher, student, name):
            shrunk = f"{_millions(teacher.costs[name])} to {_millions(student.costs[name])}"
            cards.append(Card(gain, f"fewer {words}", f"{shrunk}{' a picture' * (name == 'macs')}"))
    names = list(dict.fromkeys([*teacher.scores, *student.scores]))
    columns = [Column("score", align="left"), *(Column(of.model) for of in (teacher, student))]
    rows = []
    for name in names:
        arrow = "↑" if better(name) == "higher" else "↓"
        cells = [score_cell(of, name) for of in (teacher, student)]
        rows.append(Row([f"{short_name(name)} {arrow}", *_with_best(cells, better(name))]))
    caption = (
        "Beside a value its 95 % interval; beside distances and Vendi that of infinitely many pictures (∞). PSNR, SSIM and "
        "cosine hold each picture against the teacher's of the same noise."
    )
    meanings = [(short_name(name), EXPLAINED[key]) for name in names if (key := name.split("-")[0]) in EXPLAINED]
    blocks: list[Block] = [Cards(cards), *(Warning(text) for text in warnings), Table(columns, rows, caption)]
    blocks += [Details("What the scores mean", meanings)]
    blocks.append(Text(f"{metric}: {test.describe(student.model, teacher.model)}"))
    return Section("Figures", blocks)


def _costs(teacher: Evaluation, student: Evaluation, times: Sequence[SideBySide]) -> Section:
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
        rows.append(Row(cells, highlight=of is student))
    names = student.model, teacher.model
    gained = [Cell(_gain(teacher, student, name, digits=2)) for name in ("macs", "parameters")]
    gained += [Cell(f"{of.speed_up(*names):.2f}×", _between(of, *names)) for of in times]
    rows.append(Row([Cell("gain"), *gained]))
    lead = "Timed turn and turn about in one run; beside a speed-up the quartiles of its rounds."
    return Section("What a picture costs", [Table(columns, rows)], lead)


def _shown(pictures: Pictures) -> list[Section]:
    names = list(pictures.grids)
    grids = [Gallery(name, pictures.grids[name], pictures.captions, colour=names.index(name)) for name in names]
    sections = [
        Section(
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
        sections.append(Section("Between two noises", [Galleries(strips, columns=count), *rows], lead))
    return sections


def _made(told: Mapping[str, Any], protocol: str) -> Section:
    facts = [(name.replace("_", " "), str(value)) for name, value in told.items() if isinstance(value, str | int | float)]
    blocks: list[Block] = [Details("How the figures were made", protocol, opened=True)]
    return Section("Protocol", [*blocks, Details("What the student's folder says of it", facts)] if facts else blocks)


def _with_best(cells: list[Cell], way: str) -> list[Cell]:
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


def _faster(speed_up: Mapping[int, float]) -> str:
    return " and ".join(f"{of:.1f}× as fast by {size}" for size, of in speed_up.items())


def _batch_sizes(row: Evaluation) -> list[int]:
    return [int(name.rpartition("_")[2]) for name in row.costs if name.startswith("seconds_by_")]


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} M"
