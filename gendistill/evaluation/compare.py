"""`gendistill compare`: models side by side at several step counts, and the regressions of students against their teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gendistill.evaluation.audited import AuditContext, clip_scores_of
from gendistill.evaluation.cached_figures import cached_figures
from gendistill.evaluation.compare_fit import measure_fits, open_add_ons
from gendistill.evaluation.compare_report import REPORTS, write_reports
from gendistill.evaluation.comparison import FILE_NAME, ComparisonRow, ModelComparison, RowTest, main_rows
from gendistill.evaluation.entries import ModelEntry, open_entries
from gendistill.evaluation.evaluation_config import ComparisonConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.image_cache import ImageCache
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.regressions import AUDITS, RegressionAnalysis, analyze_regressions, images_to_generate
from gendistill.evaluation.report_folder import report_folder
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.metrics.cost.efficiency import Costs, images_generated
from gendistill.metrics.distances.uncertainty import sample_size_warning
from gendistill.metrics.pairs.paired import paired_test, paired_test_frechet
from gendistill.metrics.pairs.perceptual import Lpips
from gendistill.metrics.registry import chosen_metrics
from gendistill.runtime.device import usable_device
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.sampling.costs import measure_costs

OUT = Path("runs/compare")
STEPS = (1, 2, 4, 8, 16, 50)


@dataclass(frozen=True)
class Thoroughness:
    """Default numbers of images and repetitions.

    Attributes:
        num: images per row.
        probes: images for each attribute and each kind of unusual prompt.
        costs: arguments of `measure_costs`.
    """

    num: int
    probes: int
    costs: dict[str, Any]


THOROUGH = Thoroughness(2000, 400, {"batch_sizes": (1, 4, 16), "repeats": 5, "min_seconds": 3, "energy_seconds": 3})
QUICK = Thoroughness(200, 64, {"batch_sizes": (1, 8), "repeats": 2, "min_seconds": 0, "energy_seconds": 0})


def compare(models: list[str], config: ComparisonConfig) -> ModelComparison:
    """Sample from every model at every step count, score, time and test; write report.html, PNG, CSV and JSON to `config.out`.

    Images, features and times are cached, so a comparison that was interrupted, or gains a model, resumes from the cache.

    Args:
        models: the first one, at its largest step count, is the baseline: put the teacher first. A student is sampled at
            the step counts (by default `STEPS`) that it was trained for, a GAN in one step.
        config: `metrics` may contain names in `AUDITS` too.

    Raises:
        ValueError: a model, the reference, a metric or a metric network cannot be used.
    """
    with report_folder(config.out or OUT, (FILE_NAME, *REPORTS)) as folder:
        return _compare(models, config, folder)


def _compare(models: list[str], config: ComparisonConfig, folder: Path) -> ModelComparison:
    amount, (metrics, audits) = QUICK if config.quick else THOROUGH, _split(config.metrics)
    device, reference = usable_device(config.device), config.reference
    probes = Probes.load(config.probes) if config.probes else Probes.for_reference(reference)
    entries = open_entries(
        models,
        list(config.steps or STEPS),
        guidance_scale=config.guidance_scale,
        solver=config.solver,
        device=device,
        dtype=config.dtype,
    )
    add_ons = open_add_ons(config.loras, config.controls, entries)
    samplers = [sampler for model in entries for sampler in model.samplers.values()]
    config = dataclasses.replace(config, num=config.num or amount.num, device=device, metrics=metrics)
    evaluator = build_evaluator(config, samplers, keep=True)
    rows = _rows(entries, evaluator, amount.costs, folder / "costs")
    context = AuditContext(evaluator, reference, probes, amount.probes, audits)
    warning = sample_size_warning(len(evaluator.prompts), evaluator.extractor.dim)
    tests, regressions = _tests(rows, evaluator), _regressions(rows, context)
    fits, notes = measure_fits(rows, evaluator, add_ons, Path(config.cache) / "fits")
    comparison = ModelComparison(evaluator, rows, tests, regressions, fits, [*([warning] if warning else []), *notes])
    files = write_reports(comparison, folder, reference, probes)
    with atomic_write(folder / FILE_NAME) as temporary:
        temporary.write_text(comparison.to_json() + "\n")
    return dataclasses.replace(comparison, files=[*files, folder / FILE_NAME])


def _split(names: Sequence[str] | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The requested scores and the requested audits; None for scores if no score was named."""
    chosen = chosen_metrics(names or (), AUDITS)
    scores = tuple(name for name in chosen if name not in AUDITS)
    return scores or None, tuple(name for name in chosen if name in AUDITS)


def _rows(entries: list[ModelEntry], evaluator: Evaluator, settings: dict[str, Any], folder: Path) -> list[ComparisonRow]:
    """A row per model and step count. Costs are cached in `folder` by model, device and `settings`."""
    plans = [(model, steps, model.samplers[steps]) for model in entries for steps in model.samplers]
    each, costs = images_generated(settings["batch_sizes"], repeats=settings["repeats"]), list[Costs]()
    prompts = evaluator.prompts[: max(settings["batch_sizes"])]
    with advancing_bar("timing", each * len(plans)) as progress:
        for model, steps, sampler in plans:
            scale = model.guidance_scale
            measure = partial(measure_costs, sampler, prompts, steps=steps, guidance_scale=scale, progress=progress, **settings)
            key_parts = [ImageCache.key_of(sampler, steps, scale), str(sampler.device), list(settings.values())]
            costs.append(cached_figures(folder, key_parts, Costs, measure, partial(progress, each)))
    rows: list[ComparisonRow] = []
    lpips = lpips_for(evaluator, str(plans[0][2].device))
    with advancing_bar("sampling", len(evaluator.prompts) * len(plans)) as progress:
        for (model, steps, sampler), cost in zip(plans, costs, strict=True):
            scale = model.guidance_scale
            evaluated = evaluator.evaluate(sampler, model=model.name, steps=steps, guidance_scale=scale, progress=progress)
            row, baseline = ComparisonRow(model, steps, evaluated, cost), rows[0] if rows else None
            rows.append(_with_costs_and_fidelity(row, baseline, evaluator, lpips))
    return rows


def _with_costs_and_fidelity(
    row: ComparisonRow, baseline: ComparisonRow | None, evaluator: Evaluator, lpips: Lpips | None
) -> ComparisonRow:
    """The row with its costs, and with its fidelity to the baseline's images of the same prompts and seeds."""
    evaluation, costs = row.evaluation, row.costs
    if baseline is not None and wants_fidelity(evaluator):
        few, both = evaluator.first(FIDELITY_IMAGES), (row, baseline)
        images, baseline_images = (few.generate(r.images.sampler, r.steps, r.images.guidance_scale) for r in both)
        features, baseline_features = (as_tensor(r.evaluated.images.features) for r in both)
        evaluation = with_fidelity(evaluation, images, baseline_images, features, baseline_features, evaluator, lpips)
    figures = {"latency_seconds": costs.latency, "images_per_second": costs.images_per_second, "flops": float(costs.flops)}
    figures |= {} if row.memory is None else {"memory_bytes": float(row.memory)}
    evaluation = dataclasses.replace(evaluation, costs=figures)
    return dataclasses.replace(row, evaluated=dataclasses.replace(row.evaluated, evaluation=evaluation))


def _tests(rows: list[ComparisonRow], evaluator: Evaluator) -> list[RowTest]:
    """Paired tests of every row against the first, and of the other rows against each other at equal step counts."""
    pairs = [(row, rows[0]) for row in rows[1:]]
    for number, row in enumerate(rows):
        pairs += [(other, row) for other in rows[number + 1 :] if other.steps == row.steps and row is not rows[0]]
    tests = []
    with advancing_bar("testing differences", len(pairs)) as progress:
        for a, b in pairs:
            features = a.evaluated.images.features, b.evaluated.images.features
            by_score = {evaluator.metric: paired_test_frechet(*features, evaluator.reference.statistics, seed=evaluator.seed)}
            if evaluator.scorer is not None:
                clip_scores = clip_scores_of(a.evaluated.images), clip_scores_of(b.evaluated.images)
                by_score["clip_score"] = paired_test(*clip_scores, seed=evaluator.seed)
            tests += [RowTest(a.evaluation.label, b.evaluation.label, name, test) for name, test in by_score.items()]
            progress(1)
    return tests


def _regressions(rows: list[ComparisonRow], context: AuditContext) -> dict[str, RegressionAnalysis]:
    """Regressions of every student, at its main step count, against the first row; none if that one is a student."""
    students = main_rows(rows)
    with advancing_bar("analysing regressions", images_to_generate(context) * 2 * len(students)) as progress:
        context = dataclasses.replace(context, progress=progress)
        return {row.entry.name: analyze_regressions(context, rows[0].images, row.images) for row in students}
