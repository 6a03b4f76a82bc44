"""What came of it, as a table for the terminal and as one self-contained page with pictures side by side."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid

from gendistill.atomic import written_aside
from gendistill.evaluation import TEACHER_SAMPLERS, TEACHER_STEPS, Gap
from gendistill.metrics.evaluate import Evaluation

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GRID_COLUMNS = 8


@dataclass(frozen=True)
class Gallery:
    """The same prompts and seeds, drawn by one model: pictures uint8 (N, 3, H, W)."""

    title: str
    pictures: Tensor


def results_table(student: list[Evaluation], slider: list[Evaluation], teacher: list[Evaluation], gaps: list[Gap]) -> Table:
    """Student beside the teacher at full length and at its best within as many network calls."""
    metric = student[0].protocol.metric
    table = Table(title=f"{metric} on {student[0].protocol.prompts}", title_justify="left", box=SIMPLE_HEAD)
    _add_columns(table, metric, "PSNR", "cosine", "gap")
    closed = {gap.network_calls: gap.closed for gap in gaps}
    for row in student:
        gap = f"{closed[row.network_calls]:.2f}" if row.network_calls in closed else ""
        table.add_row(*_cells(row, metric), *_fidelity_cells(row), gap, style="bold")
    for row in [*slider, *best_rows(student, teacher)]:
        table.add_row(*_cells(row, metric), *_fidelity_cells(row), "")
    return table


def teacher_table(rows: list[Evaluation]) -> Table:
    """All that was measured of a teacher."""
    metric = rows[0].protocol.metric
    table = Table(title=f"{metric} on {rows[0].protocol.prompts}", title_justify="left", box=SIMPLE_HEAD)
    _add_columns(table, metric)
    for row in rows:
        table.add_row(*_cells(row, metric))
    return table


def best_rows(student: list[Evaluation], teacher: list[Evaluation]) -> list[Evaluation]:
    """The teacher's best row at 50 steps, and for each solver its best within each of the student's numbers of calls."""
    metric = student[0].protocol.metric
    rows = [_best([row for row in teacher if row.protocol.num_inference_steps == TEACHER_STEPS], metric)]
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
    galleries: list[Gallery],
    prompts: list[str],
) -> None:
    """report.html: figures, quality against network calls, the slider's curve, and grids at the same prompts and seeds."""
    metric = student[0].protocol.metric
    environment = Environment(loader=PackageLoader("gendistill", "."), autoescape=select_autoescape(default=True))
    rows = [
        (row, [*_cells(row, metric), *_fidelity_cells(row)], row in student)
        for row in [*student, *slider, *best_rows(student, teacher)]
    ]
    closed = {gap.network_calls: f"{gap.closed:.2f}" for gap in gaps}
    curved = slider and "clip_score" in slider[0].scores
    page = environment.get_template("report.html.jinja").render(
        title=title,
        metric=metric,
        rows=rows,
        closed=closed,
        gaps=gaps,
        plot=_as_png(_plot(student, teacher)),
        slider_plot=_as_png(_slider_plot([*student, *slider], teacher)) if curved else None,
        galleries=[(gallery.title, _grid(gallery.pictures)) for gallery in galleries],
        columns=GRID_COLUMNS,
        prompts=prompts,
        protocol=student[0].protocol,
    )
    with written_aside(path) as aside:
        aside.write_text(page)


COLUMNS = ("model", "sampler", "steps", "scale", "calls")


def _add_columns(table: Table, metric: str, *more: str) -> None:
    for column in (*COLUMNS, metric, "CLIP", "ms", *more):
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")


def _cells(row: Evaluation, metric: str) -> list[str]:
    scale = row.protocol.guidance_scale
    clip = f"{row.scores['clip_score']:.1f}" if "clip_score" in row.scores else ""
    return [
        row.model,
        row.sampler,
        str(row.protocol.num_inference_steps),
        f"{scale:g}" if scale > 1 else "-",
        str(row.network_calls),
        f"{row.scores[metric]:.2f}",
        clip,
        f"{row.seconds_per_picture * 1000:.1f}",
    ]


def _fidelity_cells(row: Evaluation) -> list[str]:
    if "psnr" not in row.scores:
        return ["", ""]
    return [f"{row.scores['psnr']:.1f}", f"{row.scores['feature_cosine']:.3f}"]


def _best(rows: list[Evaluation], metric: str) -> Evaluation:
    return min(rows, key=lambda row: row.scores[metric])


def _plot(student: list[Evaluation], teacher: list[Evaluation]) -> bytes:
    """Distance against network calls: the student's curve and the teacher's best by each solver."""
    metric = student[0].protocol.metric
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for solver in TEACHER_SAMPLERS:
        points: dict[int, float] = {}
        for row in teacher:
            if row.sampler == solver:
                points[row.network_calls] = min(row.scores[metric], points.get(row.network_calls, float("inf")))
        calls = sorted(points)
        axes.plot(calls, [points[call] for call in calls], "o--", label=f"teacher, {solver}", alpha=0.8)
    ordered = sorted(student, key=lambda row: row.network_calls)
    axes.plot([row.network_calls for row in ordered], [row.scores[metric] for row in ordered], "o-", lw=2, label="student")
    axes.set(xscale="log", xlabel="network calls a picture", ylabel=f"{metric} (lower is better)")
    ticks = sorted({row.network_calls for row in [*student, *teacher]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def _slider_plot(students: list[Evaluation], teacher: list[Evaluation]) -> bytes:
    """CLIP score against distance, a point a guidance scale: w-conditioned students beside the teacher at full length."""
    metric = students[0].protocol.metric
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    full = [row for row in teacher if row.protocol.num_inference_steps == TEACHER_STEPS]
    curves = {"teacher, 50 steps": full}
    for row in students:
        curves.setdefault(f"{row.model}, {row.protocol.num_inference_steps} steps", []).append(row)
    for number, (name, rows) in enumerate(curves.items()):
        ordered = sorted(rows, key=lambda row: row.protocol.guidance_scale)
        points = [(row.scores["clip_score"], row.scores[metric]) for row in ordered]
        axes.plot(*zip(*points, strict=True), "o-" if number else "ks--", label=name, alpha=0.85)
        for row, point in zip(ordered, points, strict=True):
            axes.annotate(f"{row.protocol.guidance_scale:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="CLIP score (higher is better)", ylabel=f"{metric} (lower is better)")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    plt.close(figure)
    return out.getvalue()


def _grid(pictures: Tensor) -> str:
    grid = make_grid(pictures, nrow=GRID_COLUMNS, padding=2, pad_value=255)
    image = Image.fromarray(grid.permute(1, 2, 0).to(torch.uint8).numpy())
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return _as_png(out.getvalue())


def _as_png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
