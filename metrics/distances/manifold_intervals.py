"""Intervals of recall and coverage over the generated images, for a fixed reference.

Both are means over reference images of values that depend on all generated images together, so a bootstrap over either set,
which takes the values as independent, gives intervals that are too narrow. Here the variance is measured between disjoint
halves and quarters of the generated images, which are independent samples, and carried over to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gendistill.metrics.distances.uncertainty import Interval, wilson_interval
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, squared_distances

SPLITS = 60  # random splits of the generated images into quarters, two of which are a half
NEAREST = 64  # neighbours among which the k-th of the same quarter is found


@dataclass(frozen=True)
class SplitScores:
    """A score of disjoint parts of the generated images.

    Attributes:
        halves: (B, 2), of both halves in B random splits.
        quarters: (B, 4).
    """

    halves: Matrix
    quarters: Matrix

    @property
    def variance_of_half(self) -> float:
        """The variance of the score over samples of half as many images."""
        return float(self.halves.var(axis=1, ddof=1).mean())

    @property
    def variance_of_quarter(self) -> float:
        return float(self.quarters.var(axis=1, ddof=1).mean())


def manifold_intervals(
    features: Features, reference: Features, neighbours: int, recall: float, coverage: float, seed: int = 0
) -> tuple[Interval, Interval]:
    """The intervals of `recall` and `coverage` of `features` (N, D) against `reference` (M, D), with k `neighbours`.

    Each contains the mean score of N new images, of the same model and against the same reference, in about 95 of 100 cases
    (`tests/metrics/distances/test_manifold_intervals.py`). It is Wilson's interval for as many independent trials as have a
    mean of that variance.

    - Recall: a / N + b, through the variances of halves and quarters. b is the part that more generated images do not remove:
      which of the M reference images lie in the balls at the border.
    - Coverage grows with N to 1, and its variance falls as c (1 - c) does: that of halves times the ratio of both.
    """
    trials = float(min(len(features), len(reference)))
    if len(features) // 4 <= neighbours:
        return _interval(recall, trials, None), _interval(coverage, trials, None)
    of_recall, of_coverage = split_scores(features, reference, neighbours, seed=seed)
    half, quarter = of_recall.variance_of_half, of_recall.variance_of_quarter
    recall_variance = max(half - (quarter - half) / 2, half / 2)
    mean = float(of_coverage.halves.mean())
    spread = mean * (1 - mean)
    ratio = coverage * (1 - coverage) / spread if spread else 1.0
    return _interval(recall, trials, recall_variance), _interval(coverage, trials, of_coverage.variance_of_half * ratio)


def _interval(score: float, trials: float, variance: float | None) -> Interval:
    if variance and (spread := score * (1 - score)):
        trials = spread / variance
    return Interval(*wilson_interval(score * trials, trials))


def split_scores(
    features: Features, reference: Features, neighbours: int, splits: int = SPLITS, seed: int = 0
) -> tuple[SplitScores, SplitScores]:
    """Recall and coverage of the halves and quarters of `features` (N, D), in `splits` random splits.

    Both sets of distances are computed once for all splits, in blocks of rows.
    """
    x, y = feature_matrices(features, reference)
    centre = y.mean(axis=0)  # distances of centred features have a smaller rounding error
    x, y = x - centre, y - centre
    rng = np.random.default_rng(seed)
    parts = rng.permuted(np.tile(np.arange(len(x)) * 4 // len(x), (splits, 1)), axis=1)  # (B, N): 0 to 3
    labels = {2: parts // 2, 4: parts}
    radii = {count: np.empty((splits, len(x))) for count in labels}
    for rows in row_blocks(len(x), len(x)):
        nearest, squared = _nearest(x, rows)
        for count, label in labels.items():
            radii[count][:, rows] = [_radii(of_split, nearest, squared, rows, neighbours) for of_split in label]
    radii_y = np.concatenate([_nearest(y, rows, neighbours)[1][:, -1] for rows in row_blocks(len(y), len(y))])
    largest = np.max([of_parts.max(axis=0) for of_parts in radii.values()], axis=0)
    recalled, covered = ({count: np.zeros((splits, count, len(y)), dtype=bool) for count in labels} for _ in range(2))
    for rows in row_blocks(len(x), len(y)):
        squared = squared_distances(x[rows], y)
        near, inside = np.nonzero(squared <= largest[rows, None]), np.nonzero(squared < radii_y)
        distances = squared[near]
        for count, label in labels.items():
            for split in range(splits):
                balls = distances <= radii[count][split, rows][near[0]]
                recalled[count][split, label[split, rows][near[0][balls]], near[1][balls]] = True
                covered[count][split, label[split, rows][inside[0]], inside[1]] = True
    of_recall, of_coverage = (SplitScores(values[2].mean(axis=2), values[4].mean(axis=2)) for values in (recalled, covered))
    return of_recall, of_coverage


def _nearest(x: Matrix, rows: slice, count: int = NEAREST) -> tuple[NDArray[np.int64], Matrix]:
    """Row numbers and squared distances (n, K) of the `count` rows of `x` that are nearest to each of `rows`, ascending."""
    count = min(count, len(x) - 1)
    squared = squared_distances(x[rows], x)
    squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf  # the row itself
    nearest = np.argpartition(squared, count - 1, axis=1)[:, :count]
    distances = np.take_along_axis(squared, nearest, axis=1)
    order = np.argsort(distances, axis=1)
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _radii(label: NDArray[np.int64], nearest: NDArray[np.int64], squared: Matrix, rows: slice, neighbours: int) -> Matrix:
    """The squared distance (n,) of each of `rows` to its k-th nearest neighbour of the same part."""
    found = np.cumsum(label[nearest] == label[rows, None], axis=1) >= neighbours
    position = np.where(found[:, -1], found.argmax(axis=1), found.shape[1] - 1)  # the last one where fewer than k are listed
    return squared[np.arange(len(squared)), position]
