"""Compute the requested metrics of a set of images, with their intervals, from features that were extracted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gendistill.metrics.distances.uncertainty import mean_interval
from gendistill.metrics.metric import ImagePairs, MetricInputs, ReferenceFeatures, SampleFeatures
from gendistill.metrics.registry import METRICS, chosen_metrics, default_metrics


@dataclass
class Scores:
    """Scores and their 95 % intervals (low, high), by reported name, and a sentence for each metric that was left out."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def measure(
    samples: SampleFeatures,
    reference: ReferenceFeatures | None,
    metrics: Sequence[str],
    *,
    fd: str,
    clip: str | None = None,
    intervals: bool = True,
    seed: int = 0,
    skip_missing: bool = False,
) -> Scores:
    """The scores of the metrics named in `metrics` (see `METRICS`), with 95 % intervals if `intervals`.

    Args:
        fd: the name of the Fréchet distance over these features (`metric_name` of their extractor).
        clip: the name of the CLIP model of the embeddings.
        seed: seed of the resampling.
        skip_missing: leave out a metric that cannot be computed, instead of raising.

    Raises:
        ValueError: a metric is unknown, or one of its inputs is missing.
    """
    inputs = MetricInputs(samples, reference, fd=fd, clip=clip, seed=seed)
    return _compute(inputs, metrics, len(samples.features), None, intervals, skip_missing)


def measure_pairs(pairs: ImagePairs, metrics: Sequence[str] | None = None, *, intervals: bool = True, seed: int = 0) -> Scores:
    """Scores of the pair metrics named in `metrics`, by default the usual ones; a metric without its inputs is left out."""
    requested = default_metrics(of_pairs=True) if metrics is None else chosen_metrics(metrics)
    pair_metrics = [name for name in requested if METRICS[name].of_pairs]
    return _compute(
        MetricInputs(pairs=pairs, seed=seed), pair_metrics, len(pairs.images), min(pairs.images.shape[-2:]), intervals, True
    )


def _compute(
    inputs: MetricInputs, metrics: Sequence[str], count: int, edge: int | None, intervals: bool, skip_missing: bool
) -> Scores:
    scores, met = Scores(), inputs.met
    real = inputs.reference.features if inputs.reference is not None else None
    for metric in map(METRICS.__getitem__, chosen_metrics(metrics)):
        if (missing := metric.lacks(met, count, edge, real)) is not None:
            if skip_missing:
                scores.left_out.append(missing)
                continue
            raise ValueError(missing)
        value, name = metric.compute(inputs), metric.reported_name(inputs)
        scores.values[name] = float(np.mean(value))
        if not intervals:
            continue
        if metric.interval is not None:
            interval = metric.interval(inputs)
        elif np.ndim(value):
            interval = mean_interval(np.asarray(value), seed=inputs.seed)
        else:
            continue
        scores.intervals[name] = (interval.low, interval.high)
    return scores
