"""The files of a comparison: report.html, a plot as PNG, and the figures as CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import median

from gendistill.data.samples import ImageSource
from gendistill.data.sources.source import open_source
from gendistill.evaluation.comparison import ComparisonRow, ModelComparison, main_rows, milliseconds
from gendistill.evaluation.fit_report import fit_section
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.regressions_report import regressions_section
from gendistill.evaluation.reporting.curves import Point, Series, curves
from gendistill.evaluation.reporting.page import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Figure,
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
from gendistill.evaluation.reporting.plot import Plot
from gendistill.evaluation.score_cells import explanations, protocol_section, score_label, score_names
from gendistill.metrics.registry import higher_is_better
from gendistill.runtime.files import atomic_write

REPORTS = ("report.html", "quality.png", "comparison.csv")
GALLERY_PIXELS = 2**16  # of all images of a grid: 64 of 32x32, 16 of 64x64, and never fewer than 8


def write_reports(comparison: ModelComparison, folder: Path, reference: str, probes: Probes) -> list[Path]:
    """Write report.html, quality.png and comparison.csv to a folder."""
    colours, baseline, names = comparison.colours, comparison.baseline, score_names(comparison.evaluations)
    source = open_source(reference)
    assert isinstance(source, ImageSource)
    page = Page(
        "Compared: " + ", ".join(colours),
        sections=[
            _figures(comparison, names),
            _costs_and_quality(comparison),
            _differences(comparison),
            _images(comparison),
            *(
                regressions_section(analysis, comparison, name, source, probes)
                for name, analysis in comparison.regressions.items()
            ),
            *(fit_section(fit, name, baseline.entry.name, colours[name]) for name, fit in comparison.fits.items()),
            _costs(comparison),
            protocol_section(baseline.evaluation, explanations(names)),
        ],
        subtitle=f"{comparison.evaluator.prompt_source}; against {comparison.evaluator.reference_name}.",
        footer="Written by gendistill compare.",
    )
    files = [folder / name for name in REPORTS]
    write_page(page, files[0])
    with atomic_write(files[1]) as temporary:
        _against_latency(comparison).save_png(temporary)
    lines = [_figures_of(row, names) for row in comparison.rows]
    with atomic_write(files[2]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return files


def _figures(comparison: ModelComparison, names: list[str]) -> PageSection:
    metric, baseline = comparison.evaluator.metric, comparison.baseline
    cards = [_card(baseline, metric, comparison.colours, "the baseline of the other models")]
    for row in main_rows(comparison.rows):
        faster = baseline.costs.latency / row.costs.latency
        cards.append(_card(row, metric, comparison.colours, f"{faster:.1f}× as fast as {baseline.evaluation.label}"))
    warnings = [Notice(text) for text in comparison.warnings]
    return PageSection("Figures", [Cards(cards), *warnings, comparison.figures(names)])


def _card(row: ComparisonRow, metric: str, colours: dict[str, int], small: str) -> Card:
    value = row.evaluation.scores[metric]
    interval = row.evaluation.intervals.get(metric)
    between = "" if interval is None else " (∞ {:.2f} to {:.2f})".format(*interval)
    return Card(f"{value:.2f}", row.evaluation.label, f"{metric}{between}; {small}", colours[row.entry.name])


def _series(comparison: ModelComparison, score: str, x: str) -> list[Series]:
    """One curve per model; the bars have the intervals' widths and are centred on the values."""
    points_by_model: dict[str, list[Point]] = {}
    for row in sorted(comparison.rows, key=lambda row: row.steps):
        x_value = {"steps": row.steps, "ms": 1000 * row.costs.latency, "MB": _memory(comparison, row)}[x]
        value, interval = row.evaluation.scores[score], row.evaluation.intervals.get(score)
        radius = (interval[1] - interval[0]) / 2 if interval else None
        low, high = (None, None) if radius is None else (max(value - radius, value / 2), value + radius)
        label = "" if x == "steps" else str(row.steps)
        points_by_model.setdefault(row.entry.name, []).append(Point(x_value, value, low, high, label))
    return [Series(name, tuple(points), comparison.colours[name]) for name, points in points_by_model.items()]


def _memory(comparison: ModelComparison, row: ComparisonRow) -> float:
    """Memory of a model in MB, the median over its rows: it does not depend on the step count."""
    return median(other.memory or 0 for other in comparison.rows if other.entry is row.entry) / 1e6


def _against_latency(comparison: ModelComparison) -> Plot:
    metric = comparison.evaluator.metric
    series = _series(comparison, metric, "ms")
    return curves(series, "milliseconds per image", f"{metric}, lower is better", x_log=True, y_log=True, front="lower")


def _costs_and_quality(comparison: ModelComparison) -> PageSection:
    metric = comparison.evaluator.metric
    distance = f"{metric}, lower is better"
    blocks: list[Block] = [
        Figure(
            _against_latency(comparison),
            "Filled points are on the Pareto front: no other point is faster and better. Numbers are step counts.",
        ),
        Figure(
            curves(_series(comparison, metric, "steps"), "steps", distance, x_log=True, y_log=True),
            f"Bars: 95 % intervals for another {len(comparison.evaluator.prompts):,} images of the same models.",
        ),
    ]
    if "clip_score" in comparison.baseline.evaluation.scores:
        clip = _series(comparison, "clip_score", "steps")
        blocks.append(Figure(curves(clip, "steps", "CLIP score, higher is better", x_log=True)))
    if all(row.memory is not None for row in comparison.rows):
        memory = _series(comparison, metric, "MB")
        blocks.append(
            Figure(
                curves(memory, "MB of weights and of sampling one image", distance, y_log=True, front="lower"),
                "The memory of a model does not depend on the step count; each point has the median over the model's rows.",
            )
        )
    return PageSection("Quality against cost", blocks, "The models on the Pareto front offer the best trade-offs.")


def _differences(comparison: ModelComparison) -> PageSection:
    columns = [
        Column("row", align="left"),
        Column("compared with", align="left"),
        Column("score", align="left"),
        Column("difference", "Score of the first row minus that of the second."),
        Column("p", "Probability of a difference at least as large between equal models."),
        Column("", align="left"),
    ]
    rows = []
    for row_test in comparison.tests:
        test, score = row_test.test, row_test.score
        better = (test.difference > 0) == higher_is_better(score)
        verdict = ("better" if better else "worse") if test.significant else "not significant"
        interval = f"{test.interval.low:.2f} to {test.interval.high:.2f}"
        difference = Cell(f"{test.difference:+.2f}", interval, muted=not test.significant)
        cells = row_test.a, row_test.b, score_label(score), difference, f"{test.p_value:.2g}"
        rows.append(TableRow.from_cells(*cells, Cell(verdict, muted=not test.significant)))
    lead = "Paired permutation tests: both models sample the same prompts and seeds, and pairs are swapped at random."
    return PageSection("Significance of the differences", [Table(columns, rows)], lead)


def _images(comparison: ModelComparison) -> PageSection:
    galleries = []
    for row in comparison.rows:
        model = row.images
        few = comparison.evaluator.first(max(8, min(64, GALLERY_PIXELS // model.sampler.resolution**2)))
        images = few.generate(model.sampler, row.steps, model.guidance_scale)
        note = f"{milliseconds(row.costs.latency)} ms"
        galleries.append(Gallery(row.evaluation.label, images, few.prompts, note, comparison.colours[model.name]))
    lead = "Image k has the same prompt and seed in every grid. The first images are shown, without selection."
    return PageSection("The same prompts and seeds", [Galleries(galleries)], lead)


def _costs(comparison: ModelComparison) -> PageSection:
    parts = list(dict.fromkeys(name for row in comparison.rows for name in row.costs.components))
    sizes = sorted({batch.batch_size for row in comparison.rows for batch in row.costs.batches})
    has_energy = any(row.costs.energy for row in comparison.rows)
    columns = [Column("model", align="left"), Column("steps"), Column("parameters, M"), Column("GFLOP per image")]
    columns += [Column("p90 ms", "90th percentile of the time per image.")]
    columns += [Column(f"{part.replace('_', ' ')}, ms", "Time of this component per image.") for part in parts]
    columns += [Column("rest, ms"), *(Column(f"images/s, batch {size}") for size in sizes)]
    if has_energy:
        columns += [Column("mWh per image", "Energy, estimated by codecarbon."), Column("mg CO₂", "Emissions of that energy.")]
    rows = []
    for row in comparison.rows:
        costs, energy = row.costs, row.costs.energy
        rates = {batch.batch_size: f"{batch.images_per_second:.1f}" for batch in costs.batches}
        split = [costs.components[part].seconds if part in costs.components else None for part in parts]
        cells = [
            str(row.steps),
            f"{costs.parameters / 1e6:.{1 if costs.parameters >= 1e7 else 2}f}",
            f"{costs.flops / 1e9:.{2 if costs.flops >= 1e8 else 4}f}",
            milliseconds(costs.batches[0].seconds_p90),
            *("" if seconds is None else f"{1000 * seconds:.1f}" for seconds in split),
            f"{1000 * costs.rest_seconds:.1f}",
            *(rates.get(size, "") for size in sizes),
        ]
        if has_energy:
            cells += [f"{1000 * energy.watt_hours:.2g}", f"{1000 * energy.co2_grams:.2g}"] if energy else ["", ""]
        name = row.entry.name
        rows.append(TableRow.from_cells(Cell(name, colour=comparison.colours[name]), *cells))
    notes = [row.costs.energy.method for row in comparison.rows if row.costs.energy]
    notes += [note for row in comparison.rows for note in row.costs.notes]
    texts = [Text(note) for note in dict.fromkeys(notes)]
    device = comparison.baseline.costs.device
    lead = f"Measured on {device}. Every image includes the text encoder, as for a new prompt."
    return PageSection("Costs per image", [Table(columns, rows), *texts], lead)


def _figures_of(row: ComparisonRow, scores: list[str]) -> dict[str, object]:
    """A line of comparison.csv; None becomes an empty cell."""
    evaluation, costs = row.evaluation, row.costs
    line: dict[str, object] = {"model": row.entry.name, "sampler": evaluation.sampler, "steps": row.steps}
    line |= {"guidance_scale": row.entry.guidance_scale, "network_calls": evaluation.network_calls}
    for name in scores:
        low, high = evaluation.intervals.get(name, (None, None))
        line |= {name: evaluation.scores.get(name), f"{name}_low": low, f"{name}_high": high}
    line |= {"latency_seconds": costs.latency, "memory_bytes": row.memory}
    return {**line, "flops": costs.flops, "parameters": costs.parameters}
