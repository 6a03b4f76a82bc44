"""Fidelity and diversity of generated images: precision, recall, density and coverage.

The metrics model a set as the union of balls around its features; the radius is the distance to the k-th nearest neighbour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gendistill.metrics.distances.manifold_intervals import manifold_intervals
from gendistill.metrics.distances.uncertainty import Interval, wilson_interval
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, squared_distances
from gendistill.metrics.metric import Metric, MetricInputs, Need

NEIGHBOURS = 5  # k of the four metrics, as in Naeem et al. 2020


@dataclass(frozen=True)
class ManifoldScores:
    """Per-image values of N generated and M reference images; each score is the mean of its values.

    Attributes:
        precision: (N,), whether the generated image lies in a ball of the reference (Kynkäänniemi et al. 2019, eq. 3).
        recall: (M,), whether the reference image lies in a ball of the generated images (same equation).
        density: (N,), number of balls of the reference that contain the generated image, divided by k; the mean is about 1
            for equal sets (Naeem et al. 2020, eq. 3).
        coverage: (M,), whether a generated image lies in the ball of this reference image (Naeem et al. 2020, eq. 4).
    """

    precision: NDArray[np.bool_]
    recall: NDArray[np.bool_]
    density: NDArray[np.float64]
    coverage: NDArray[np.bool_]


def manifold_scores(features: Features, reference: Features, neighbours: int = 3) -> ManifoldScores:
    """Precision, recall, density and coverage of `features` (N, D) against `reference` (M, D), with k `neighbours`.

    Every distance is computed once, in float64, in blocks of rows. For precision and recall a ball includes its surface, as
    in the paper and torch-fidelity (k = 3); for density and coverage it does not, as in prdc (k = 5 in the paper). This
    matters only for equal images.

    Raises:
        ValueError: the numbers of features differ, or `neighbours` is not in [1, min(N, M)).
    """
    x, y = feature_matrices(features, reference)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours: got {neighbours}, expects at least 1 and fewer than the {min(len(x), len(y))} images.")
    centre = y.mean(axis=0)  # distances of centred features have a smaller rounding error
    x, y = x - centre, y - centre
    radii_x, radii_y = _squared_radii(x, neighbours), _squared_radii(y, neighbours)
    precise, recalled = np.zeros(len(x), dtype=bool), np.zeros(len(y), dtype=bool)
    densities, covered = np.zeros(len(x)), np.zeros(len(y), dtype=bool)
    for rows in row_blocks(len(x), len(y)):
        squared = squared_distances(x[rows], y)
        precise[rows] = (squared <= radii_y).any(axis=1)
        recalled |= (squared <= radii_x[rows, None]).any(axis=0)
        inside = squared < radii_y
        densities[rows] = inside.sum(axis=1) / neighbours
        covered |= inside.any(axis=0)
    return ManifoldScores(precise, recalled, densities, covered)


def _squared_radii(x: Matrix, neighbours: int) -> Matrix:
    """Squared distance (N,) of each row of `x` (N, D) to its k-th nearest neighbour."""
    radii = np.empty(len(x))
    for rows in row_blocks(len(x), len(x)):
        squared = squared_distances(x[rows], x)
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = -1  # the row itself sorts before its copies
        squared.partition(neighbours, axis=1)
        radii[rows] = squared[:, neighbours]
    return radii


def _scores(inputs: MetricInputs) -> ManifoldScores:
    return manifold_scores(inputs.features, inputs.real_features, NEIGHBOURS)


def _precision_interval(inputs: MetricInputs) -> Interval:
    precise = inputs.once(_scores).precision
    return Interval(*wilson_interval(int(precise.sum()), len(precise)))


def _intervals(inputs: MetricInputs) -> tuple[Interval, Interval]:
    scores = inputs.once(_scores)
    recall, coverage = float(scores.recall.mean()), float(scores.coverage.mean())
    return manifold_intervals(inputs.features, inputs.real_features, NEIGHBOURS, recall, coverage, inputs.seed)


def _metric(
    name: str, explanation: str, interval: Callable[[MetricInputs], Interval] | None = None, in_summary: bool = True
) -> Metric:
    return Metric(
        name=name,
        explanation=explanation,
        compute=lambda inputs: getattr(inputs.once(_scores), name).astype(np.float64),
        higher_is_better=True,
        needs=frozenset({Need.REAL_FEATURES}),
        interval=interval,
        min_samples=NEIGHBOURS + 1,
        default="full",
        in_summary=in_summary,
        aliases=("prdc", "prc"),
    )


PRECISION = _metric("precision", "Fraction of generated images that lie among the real ones.", _precision_interval)
RECALL = _metric(
    "recall", "Fraction of real images that lie among the generated ones.", lambda inputs: inputs.once(_intervals)[0]
)
DENSITY = _metric("density", "Density of the real images around the generated ones; may exceed 1.", in_summary=False)
COVERAGE = _metric(
    "coverage", "Fraction of real images with a generated one nearby.", lambda inputs: inputs.once(_intervals)[1]
)
