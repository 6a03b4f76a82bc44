"""A comparison as files: report.html to read, a PNG to show, a CSV to go on with."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from gendistill.data.samples import PictureSource
from gendistill.data.sources.source import open_source
from gendistill.evaluation.breakage_report import breakage_section
from gendistill.evaluation.comparison import ComparisonRow, ModelComparison, main_rows, milliseconds
from gendistill.evaluation.fit_report import fit_section
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.reporting import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Galleries,
    Gallery,
    Notice,
    Page,
    PageSection,
    Plot,
    Point,
    Series,
    Table,
    TableRow,
    Text,
    colour_numbers,
    pareto,
    quality_against_steps,
    write_csv,
    write_page,
)
from gendistill.evaluation.score_cells import INTERVALS, explanations, score_cell, score_column, score_label, score_names
from gendistill.metrics.cost.energy import Energy
from gendistill.metrics.registry import higher_is_better
from gendistill.runtime.files import written_aside

GALLERY_PIXELS = 2**16  # of all pictures of a grid: 64 of 32x32, 16 of 64x64, 4 of 128x128 and at least as many beyond


def write_reports(comparison: ModelComparison, folder: Path, reference: str, probes: Probes) -> list[Path]:
    """report.html, quality.png and comparison.csv in a folder."""
    colours = _colours(comparison)
    source = open_source(reference)
    assert isinstance(source, PictureSource)
    page = Page(
        "Compared: " + ", ".join(colours),
        sections=[
            _figures(comparison, colours),
            _costs_and_quality(comparison, colours),
            _differences(comparison),
            _pictures(comparison, colours),
            *(
                breakage_section(broken, comparison, name, colours[name], source, probes)
                for name, broken in comparison.breakage.items()
            ),
            *(
                fit_section(fit, name, comparison.baseline.contestant.name, colours[name])
                for name, fit in comparison.fits.items()
            ),
            _costs(comparison, colours),
            _protocol(comparison),
        ],
        subtitle=f"{comparison.judge.prompt_source}; against {comparison.judge.reference_name}.",
        footer="Written by gendistill compare.",
    )
    write_page(page, folder / "report.html")
    with written_aside(folder / "quality.png") as aside:
        _against_latency(comparison, colours).save_png(aside)
    columns, rows = _as_csv(comparison)
    write_csv(folder / "comparison.csv", columns, rows)
    return [folder / name for name in ("report.html", "quality.png", "comparison.csv")]


def _colours(comparison: ModelComparison) -> dict[str, int]:
    names = list(dict.fromkeys(row.contestant.name for row in comparison.rows))
    baseline = comparison.baseline.contestant
    return colour_numbers(names, reference=None if baseline.is_student else baseline.name)


def _figures(comparison: ModelComparison, colours: dict[str, int]) -> PageSection:
    metric, baseline = comparison.judge.metric, comparison.baseline
    cards = [_card(baseline, metric, colours, "what the others are held against")]
    for row in main_rows(comparison.rows):
        faster = baseline.costs.latency / row.costs.latency
        cards.append(_card(row, metric, colours, f"{faster:.1f}× as fast as {baseline.evaluation.label}"))
    names = score_names(comparison.evaluations)
    columns = [
        Column("model", align="left"),
        Column("steps"),
        Column("calls", "Network calls a picture; a guided step is two."),
    ]
    columns += [score_column(name) for name in names]
    columns += [
        Column("ms", "Median time of one picture by itself, after warm-up.", "lower"),
        Column("MB", "Weights, and what drawing one picture takes besides.", "lower"),
    ]
    rows = [
        TableRow(
            [
                Cell(row.contestant.name, colour=colours[row.contestant.name]),
                Cell(str(row.steps), value=row.steps),
                Cell(str(row.evaluation.network_calls), value=row.evaluation.network_calls),
                *(score_cell(row.evaluation, name) for name in names),
                Cell(milliseconds(row.costs.latency), value=row.costs.latency),
                Cell("") if row.memory is None else Cell(f"{row.memory / 1e6:.0f}", value=row.memory),
            ],
            highlight=row.contestant.is_student,
            group=_kind(row),
        )
        for row in comparison.rows
    ]
    warnings = [Notice(text) for text in comparison.warnings]
    caption = f"{INTERVALS} The best of a column is marked."
    return PageSection("Figures", [Cards(cards), *warnings, Table(columns, rows, caption).with_best()])


def _card(row: ComparisonRow, metric: str, colours: dict[str, int], small: str) -> Card:
    value = row.evaluation.scores[metric]
    interval = row.evaluation.intervals.get(metric)
    between = "" if interval is None else " (∞ {:.2f} to {:.2f})".format(*interval)
    return Card(f"{value:.2f}", row.evaluation.label, f"{metric}{between}; {small}", colours[row.contestant.name])


def _kind(row: ComparisonRow) -> str:
    model = row.contestant
    method = model.samplers[row.steps].method
    guidance = f", guidance {model.guidance_scale:g}" if model.guidance_scale > 1 else ""
    return f"{model.name}: {f'{method} student' if method else model.solver(row.steps)}{guidance}"


def _series(comparison: ModelComparison, colours: dict[str, int], score: str, x: str) -> list[Series]:
    """A curve a model, whose bars are what other pictures would give: the intervals' width about the values themselves."""
    found: dict[str, list[Point]] = {}
    for row in sorted(comparison.rows, key=lambda row: row.steps):
        at = {"steps": row.steps, "ms": 1000 * row.costs.latency, "MB": _memory(comparison, row)}[x]
        value, interval = row.evaluation.scores[score], row.evaluation.intervals.get(score)
        reach = (interval[1] - interval[0]) / 2 if interval else None
        low, high = (None, None) if reach is None else (max(value - reach, value / 2), value + reach)
        found.setdefault(row.contestant.name, []).append(Point(at, value, low, high, str(row.steps)))
    return [Series(name, tuple(points), colours[name]) for name, points in found.items()]


def _memory(comparison: ModelComparison, row: ComparisonRow) -> float:
    """MB of a model, the median over its rows: one picture takes the same memory in any number of steps."""
    return median(other.memory or 0 for other in comparison.rows if other.contestant is row.contestant) / 1e6


def _against_latency(comparison: ModelComparison, colours: dict[str, int]) -> Plot:
    metric = comparison.judge.metric
    return pareto(
        _series(comparison, colours, metric, "ms"), "milliseconds a picture", f"{metric}, lower is better", y_log=True
    )


def _costs_and_quality(comparison: ModelComparison, colours: dict[str, int]) -> PageSection:
    metric = comparison.judge.metric
    distance = f"{metric}, lower is better"
    blocks: list[Block] = [
        Figure(
            _against_latency(comparison, colours),
            "Filled points are on the front: nothing is faster and better. Numbers are steps.",
        ),
        Figure(
            quality_against_steps(_series(comparison, colours, metric, "steps"), distance, y_log=True),
            f"Bands: what other {len(comparison.judge.prompts):,} pictures of the same models would give, 95 % of the time.",
        ),
    ]
    if "clip_score" in comparison.baseline.evaluation.scores:
        clip = _series(comparison, colours, "clip_score", "steps")
        blocks.append(Figure(quality_against_steps(clip, "CLIP score, higher is better")))
    if all(row.memory is not None for row in comparison.rows):
        memory = _series(comparison, colours, metric, "MB")
        blocks.append(
            Figure(
                pareto(memory, "MB of weights and of drawing one picture", distance, x_log=False, y_log=True),
                "One picture takes the same memory in any number of steps; the median over a model's rows.",
            )
        )
    return PageSection("Quality against cost", blocks, "Where the front bends is where to look first.")


def _differences(comparison: ModelComparison) -> PageSection:
    columns = [
        Column("rows", align="left"),
        Column("held against", align="left"),
        Column("score", align="left"),
        Column("difference", "The first row's less the second's.", align="right"),
        Column("p", "How often models that are alike would differ as much.", align="right"),
        Column("", align="left"),
    ]
    rows = []
    for found in comparison.tests:
        test = found.test
        better = (test.difference > 0) == higher_is_better(found.score)
        verdict = ("better" if better else "worse") if test.significant else "cannot be told apart"
        interval = f"{test.interval.low:.2f} to {test.interval.high:.2f}"
        rows.append(
            TableRow(
                [
                    found.a,
                    found.b,
                    score_label(found.score),
                    Cell(f"{test.difference:+.2f}", interval, test.difference, muted=not test.significant),
                    f"{test.p_value:.2g}",
                    Cell(verdict, muted=not test.significant),
                ]
            )
        )
    lead = "Paired tests: the same prompts and seeds on both sides, swapped at random within pairs."
    return PageSection("Is the difference real?", [Table(columns, rows)], lead)


def _pictures(comparison: ModelComparison, colours: dict[str, int]) -> PageSection:
    galleries = []
    judge = comparison.judge
    for row in comparison.rows:
        sampler = row.contestant.samplers[row.steps]
        count = max(8, min(64, GALLERY_PIXELS // sampler.resolution**2))
        few = judge.first(count)
        pictures = few.draw(sampler, row.steps, row.contestant.guidance_scale)
        note = f"{milliseconds(row.costs.latency)} ms"
        galleries.append(Gallery(row.evaluation.label, pictures, few.prompts, note, colours[row.contestant.name]))
    lead = "Picture k has the same prompt and seed in every grid; they are the first ones, not chosen."
    return PageSection("The same prompts and seeds", [Galleries(galleries)], lead)


def _costs(comparison: ModelComparison, colours: dict[str, int]) -> PageSection:
    sizes = sorted({batch.batch_size for row in comparison.rows for batch in row.costs.batches})
    parts = list(dict.fromkeys(name for row in comparison.rows for name in row.costs.components))
    columns = [Column("model", align="left"), Column("steps"), Column("parameters, M"), Column("GFLOP a picture")]
    columns += [Column("p90 ms", "90th percentile of the time of one picture.")]
    columns += [Column(f"{part.replace('_', ' ')}, ms", "Its part of one picture.") for part in parts]
    columns += [Column("rest, ms"), *(Column(f"a second, by {size}") for size in sizes)]
    energetic = any(row.costs.energy for row in comparison.rows)
    if energetic:
        columns += [Column("mWh a picture", "Electricity, estimated by codecarbon."), Column("mg CO₂", "Of that electricity.")]
    rows = []
    for row in comparison.rows:
        costs = row.costs
        rates = {batch.batch_size: f"{batch.pictures_per_second:.1f}" for batch in costs.batches}
        split = [costs.components[part].seconds if part in costs.components else None for part in parts]
        rows.append(
            TableRow(
                [
                    Cell(row.contestant.name, colour=colours[row.contestant.name]),
                    str(row.steps),
                    f"{costs.parameters / 1e6:.{1 if costs.parameters >= 1e7 else 2}f}",
                    f"{costs.flops / 1e9:.{2 if costs.flops >= 1e8 else 4}f}",
                    milliseconds(costs.batches[0].seconds_p90),
                    *("" if seconds is None else f"{1000 * seconds:.1f}" for seconds in split),
                    f"{1000 * costs.rest_seconds:.1f}",
                    *(rates.get(size, "") for size in sizes),
                    *(_energy(costs.energy) if energetic else ()),
                ]
            )
        )
    first = comparison.baseline.costs
    told = [row.costs.energy.method for row in comparison.rows if row.costs.energy]
    told += [note for row in comparison.rows for note in row.costs.notes]
    notes = [Text(note) for note in dict.fromkeys(told)]
    lead = f"Measured on {first.device}. The text encoder is counted with every picture, as for a prompt that is new."
    return PageSection("What a picture costs", [Table(columns, rows), *notes], lead)


def _energy(energy: Energy | None) -> tuple[str, str]:
    return ("", "") if energy is None else (f"{1000 * energy.watt_hours:.2g}", f"{1000 * energy.co2_grams:.2g}")


def _protocol(comparison: ModelComparison) -> PageSection:
    protocol = comparison.baseline.evaluation.protocol
    facts = [
        ("extractor", f"{protocol.extractor} ({protocol.weights_hash})"),
        ("pictures", f"{protocol.num_samples:,}, {protocol.resize}"),
        ("prompts", f"{protocol.prompts}, seed {protocol.seed}"),
        ("reference", f"{protocol.reference}, {protocol.reference_count:,} pictures ({protocol.reference_hash})"),
        ("CLIP", f"{protocol.clip_model} ({protocol.clip_weights_hash})" if protocol.clip_model else "none"),
        ("intervals", "95 %, bootstrap over drawn pictures; distances corrected for their bias in finite sets"),
        ("versions", ", ".join(f"{name} {version}" for name, version in protocol.versions.items())),
    ]
    named = "Distances are named after the network that saw the images: no two protocols share a name."
    facts_block = Details("How the figures were made", facts, opened=True)
    return PageSection("Protocol", [facts_block, explanations(score_names(comparison.evaluations)), Text(named)])


def _as_csv(comparison: ModelComparison) -> tuple[list[str], list[list[object]]]:
    scores = score_names(comparison.evaluations)
    columns = ["model", "sampler", "steps", "guidance_scale", "network_calls"]
    columns += [part for name in scores for part in (name, f"{name}_low", f"{name}_high")]
    columns += ["latency_seconds", "memory_bytes", "flops", "parameters"]
    rows: list[list[object]] = []
    for row in comparison.rows:
        of, model = row.evaluation, row.contestant
        figures: list[object] = []
        for name in scores:
            figures += [of.scores.get(name, ""), *of.intervals.get(name, ("", ""))]
        costs = [row.costs.latency, row.memory or "", row.costs.flops, row.costs.parameters]
        rows.append([model.name, of.sampler, row.steps, model.guidance_scale, of.network_calls, *figures, *costs])
    return columns, rows
