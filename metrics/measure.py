"""The requested metrics of a set of images, each with its interval, from features that were extracted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gendistill.metrics.distances.uncertainty import mean_interval
from gendistill.metrics.metric import ImagePairs, MetricInputs, ReferenceFeatures, SampleFeatures
from gendistill.metrics.registry import METRICS, chosen_metrics, default_metrics


@dataclass
class Scores:
    """Values and (low, high) of their 95 % intervals, by reported name."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


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
    """The scores named in `metrics` (see `METRICS`), with 95 % intervals if `intervals`.

    Args:
        fd: what the Fréchet distance is called with the extractor of the features (`metric_name`).
        clip: the name of the CLIP model that embedded the images.
        seed: of resampling.
        skip_missing: leave out what cannot be computed, instead of an error.

    Raises:
        ValueError: a metric is unknown, or needs what is not there.
    """
    inputs = MetricInputs(samples, reference, fd=fd, clip=clip, seed=seed)
    return _compute(inputs, metrics, len(samples.features), None, intervals, skip_missing)


def measure_pairs(pairs: ImagePairs, metrics: Sequence[str] | None = None, *, intervals: bool = True, seed: int = 0) -> Scores:
    """The metrics of pairs of images that are named in `metrics`, or all usual ones, those that can be had of these pairs."""
    wanted = default_metrics(of_pairs=True) if metrics is None else chosen_metrics(metrics)
    of_pairs = [name for name in wanted if METRICS[name].of_pairs]
    return _compute(
        MetricInputs(pairs=pairs, seed=seed), of_pairs, len(pairs.images), min(pairs.images.shape[-2:]), intervals, True
    )


def _compute(
    inputs: MetricInputs, metrics: Sequence[str], count: int, edge: int | None, intervals: bool, skip_missing: bool
) -> Scores:
    scores, met = Scores(), inputs.met
    for metric in map(METRICS.__getitem__, chosen_metrics(metrics)):
        if (missing := metric.lacks(met, count, edge)) is not None:
            if skip_missing:
                continue
            raise ValueError(missing)
        value, name = metric.compute(inputs), metric.reported_name(inputs)
        scores.values[name] = float(np.mean(value))
        if not intervals:
            continue
        if metric.interval is not None:
            found = metric.interval(inputs)
        elif np.ndim(value):
            found = mean_interval(np.asarray(value), seed=inputs.seed)
        else:
            continue
        scores.intervals[name] = (found.low, found.high)
    return scores
