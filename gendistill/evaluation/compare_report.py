"""A comparison as files: report.html to read, a PNG to show, a CSV to go on with."""

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

GALLERY_PIXELS = 2**16  # of all images of a grid: 64 of 32x32, 16 of 64x64, 4 of 128x128 and at least as many beyond


def write_reports(comparison: ModelComparison, folder: Path, reference: str, probes: Probes) -> list[Path]:
    """report.html, quality.png and comparison.csv in a folder."""
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
            *(regressions_section(broken, comparison, name, source, probes) for name, broken in comparison.regressions.items()),
            *(fit_section(fit, name, baseline.entry.name, colours[name]) for name, fit in comparison.fits.items()),
            _costs(comparison),
            protocol_section(baseline.evaluation, explanations(names)),
        ],
        subtitle=f"{comparison.evaluator.prompt_source}; against {comparison.evaluator.reference_name}.",
        footer="Written by gendistill compare.",
    )
    files = [folder / name for name in ("report.html", "quality.png", "comparison.csv")]
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
    cards = [_card(baseline, metric, comparison.colours, "what the others are held against")]
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
    """A curve a model, whose bars are what other images would give: the intervals' width about the values themselves."""
    found: dict[str, list[Point]] = {}
    for row in sorted(comparison.rows, key=lambda row: row.steps):
        at = {"steps": row.steps, "ms": 1000 * row.costs.latency, "MB": _memory(comparison, row)}[x]
        value, interval = row.evaluation.scores[score], row.evaluation.intervals.get(score)
        reach = (interval[1] - interval[0]) / 2 if interval else None
        low, high = (None, None) if reach is None else (max(value - reach, value / 2), value + reach)
        label = "" if x == "steps" else str(row.steps)
        found.setdefault(row.entry.name, []).append(Point(at, value, low, high, label))
    return [Series(name, tuple(points), comparison.colours[name]) for name, points in found.items()]


def _memory(comparison: ModelComparison, row: ComparisonRow) -> float:
    """MB of a model, the median over its rows: one image takes the same memory in any number of steps."""
    return median(other.memory or 0 for other in comparison.rows if other.entry is row.entry) / 1e6


def _against_latency(comparison: ModelComparison) -> Plot:
    metric = comparison.evaluator.metric
    series = _series(comparison, metric, "ms")
    return curves(series, "milliseconds an image", f"{metric}, lower is better", x_log=True, y_log=True, front="lower")


def _costs_and_quality(comparison: ModelComparison) -> PageSection:
    metric = comparison.evaluator.metric
    distance = f"{metric}, lower is better"
    blocks: list[Block] = [
        Figure(
            _against_latency(comparison),
            "Filled points are on the front: nothing is faster and better. Numbers are steps.",
        ),
        Figure(
            curves(_series(comparison, metric, "steps"), "steps", distance, x_log=True, y_log=True),
            f"Bars: what other {len(comparison.evaluator.prompts):,} images of the same models would give, 95 % of the time.",
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
                "One image takes the same memory in any number of steps; the median over a model's rows.",
            )
        )
    return PageSection("Quality against cost", blocks, "Where the front bends is where to look first.")


def _differences(comparison: ModelComparison) -> PageSection:
    columns = [
        Column("rows", align="left"),
        Column("held against", align="left"),
        Column("score", align="left"),
        Column("difference", "The first row's less the second's."),
        Column("p", "How often models that are alike would differ as much."),
        Column("", align="left"),
    ]
    rows = []
    for found in comparison.tests:
        test = found.test
        better = (test.difference > 0) == higher_is_better(found.score)
        verdict = ("better" if better else "worse") if test.significant else "cannot be told apart"
        interval = f"{test.interval.low:.2f} to {test.interval.high:.2f}"
        difference = Cell(f"{test.difference:+.2f}", interval, muted=not test.significant)
        told = Cell(verdict, muted=not test.significant)
        rows.append(TableRow.of(found.a, found.b, score_label(found.score), difference, f"{test.p_value:.2g}", told))
    lead = "Paired tests: the same prompts and seeds on both sides, swapped at random within pairs."
    return PageSection("Is the difference real?", [Table(columns, rows)], lead)


def _images(comparison: ModelComparison) -> PageSection:
    galleries = []
    for row in comparison.rows:
        entry_images = row.images
        few = comparison.evaluator.first(max(8, min(64, GALLERY_PIXELS // entry_images.sampler.resolution**2)))
        images, note = (
            few.generate(entry_images.sampler, row.steps, entry_images.guidance_scale),
            f"{milliseconds(row.costs.latency)} ms",
        )
        galleries.append(Gallery(row.evaluation.label, images, few.prompts, note, comparison.colours[entry_images.name]))
    lead = "Image k has the same prompt and seed in every grid; they are the first ones, not chosen."
    return PageSection("The same prompts and seeds", [Galleries(galleries)], lead)


def _costs(comparison: ModelComparison) -> PageSection:
    parts = list(dict.fromkeys(name for row in comparison.rows for name in row.costs.components))
    sizes = sorted({batch.batch_size for row in comparison.rows for batch in row.costs.batches})
    energetic = any(row.costs.energy for row in comparison.rows)
    columns = [Column("model", align="left"), Column("steps"), Column("parameters, M"), Column("GFLOP an image")]
    columns += [Column("p90 ms", "90th percentile of the time of one image.")]
    columns += [Column(f"{part.replace('_', ' ')}, ms", "Its part of one image.") for part in parts]
    columns += [Column("rest, ms"), *(Column(f"a second, by {size}") for size in sizes)]
    if energetic:
        columns += [Column("mWh an image", "Electricity, estimated by codecarbon."), Column("mg CO₂", "Of that electricity.")]
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
        if energetic:
            cells += [f"{1000 * energy.watt_hours:.2g}", f"{1000 * energy.co2_grams:.2g}"] if energy else ["", ""]
        name = row.entry.name
        rows.append(TableRow.of(Cell(name, colour=comparison.colours[name]), *cells))
    told = [row.costs.energy.method for row in comparison.rows if row.costs.energy]
    told += [note for row in comparison.rows for note in row.costs.notes]
    notes = [Text(note) for note in dict.fromkeys(told)]
    device = comparison.baseline.costs.device
    lead = f"Measured on {device}. The text encoder is counted with every image, as for a prompt that is new."
    return PageSection("What an image costs", [Table(columns, rows), *notes], lead)


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
