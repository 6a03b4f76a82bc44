"""Intervals of precision, recall, density and coverage: how often they hold the mean score of new images."""

import numpy as np
import pytest

from gendistill.metrics.distances.manifold import NEIGHBOURS, manifold_scores
from gendistill.metrics.distances.manifold_intervals import manifold_intervals, split_scores
from gendistill.metrics.distances.uncertainty import Interval, mean_interval, wilson_interval

NAMES = ("precision", "recall", "density", "coverage")


def held(draws, count, real, dim, shift, scale, seed=0):
    """For each score, the fraction of `draws` whose interval holds the mean over all draws, and its mean width in spreads."""
    rng = np.random.default_rng(seed)
    reference, values, intervals = rng.standard_normal((real, dim)), [], []
    for draw in range(draws):
        x = rng.standard_normal((count, dim)) * scale + shift
        scores = manifold_scores(x, reference, NEIGHBOURS)
        values.append([getattr(scores, name).mean() for name in NAMES])
        recall, coverage = manifold_intervals(x, reference, NEIGHBOURS, values[-1][1], values[-1][3], seed=draw)
        precision = Interval(*wilson_interval(scores.precision.sum(), count))
        intervals.append([precision, recall, mean_interval(scores.density, 300, seed=draw), coverage])
    truth, spread = np.mean(values, axis=0), 2 * 1.96 * np.std(values, axis=0)
    holds = [np.mean([truth[k] in row[k] for row in intervals]) for k in range(4)]
    widths = [np.mean([row[k].high - row[k].low for row in intervals]) / spread[k] for k in range(4)]
    return dict(zip(NAMES, zip(holds, widths, strict=True), strict=True))


def test_intervals_of_recall_and_coverage_are_as_wide_as_the_scores_vary():
    for name, (holds, width) in held(60, 120, 160, 4, 0.3, 0.7).items():
        assert holds >= 0.88, name
        assert 0.8 <= width <= 1.5, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "real", "dim", "shift", "scale"),
    [(500, 1000, 8, 0, 1), (500, 1000, 8, 0.3, 0.7), (500, 1000, 32, 0, 1), (1000, 500, 3, 0.3, 0.7), (600, 600, 4, 0, 0.8)],
)
def test_the_intervals_hold_the_mean_of_new_images_in_about_95_of_100_cases(count, real, dim, shift, scale):
    found = held(200, count, real, dim, shift, scale)
    for name, (holds, width) in found.items():
        assert holds >= 0.91, (name, found)
        assert width <= 1.6, (name, found)


def test_halves_and_quarters_are_scored_as_sets_of_their_own():
    """As `manifold_scores` scores them without the other images."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((30, 3))
    recall, coverage = split_scores(x, y, 3, splits=4, seed=2)
    parts = np.random.default_rng(2).permuted(np.tile(np.arange(40) * 4 // 40, (4, 1)), axis=1)
    for split in range(4):
        for part in range(4):
            alone = manifold_scores(x[parts[split] == part], y, 3)
            assert recall.quarters[split, part] == alone.recall.mean()
            assert coverage.quarters[split, part] == alone.coverage.mean()
        for half in range(2):
            assert recall.halves[split, half] == manifold_scores(x[parts[split] // 2 == half], y, 3).recall.mean()


def test_equal_few_and_distant_images_have_intervals_too():
    rng = np.random.default_rng(3)
    y = rng.standard_normal((60, 4))
    for x, score in ((y, 1.0), (y + 100, 0.0), (y[:8], 1.0)):
        for interval in manifold_intervals(x, y, NEIGHBOURS, score, score):
            assert 0 <= interval.low <= score <= interval.high <= 1
            assert interval.high - interval.low < 0.6
