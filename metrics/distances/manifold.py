"""Do sampled images look real, and do they show all that is real? Precision, recall, density and coverage.

Both pairs see a set as the union of balls around its features, each reaching to the k-th nearest neighbour in the set.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks
from gendistill.metrics.metric import Metric, MetricInputs, Need

NEIGHBOURS = 5  # of the four metrics, as Naeem et al. 2020


@dataclass(frozen=True)
class ManifoldScores:
    """Per-image values of N generated and M reference images; each score is the mean of its own.

    Attributes:
        precision: (N,) the generated image lies in a ball of the reference (Kynkäänniemi et al. 2019, eq. 3).
        recall: (M,) the reference image lies in a ball of the generated ones (the same).
        density: (N,) balls of the reference that the generated image lies in, over k; a mean of about 1 for equal sets
            (Naeem et al. 2020, eq. 3).
        coverage: (M,) a generated image lies in the ball of this reference image (Naeem et al. 2020, eq. 4).
    """

    precision: NDArray[np.bool_]
    recall: NDArray[np.bool_]
    density: NDArray[np.float64]
    coverage: NDArray[np.bool_]


def manifold_scores(features: Features, reference: Features, neighbours: int = 3) -> ManifoldScores:
    """Precision, recall, density and coverage of `features` (N, D) against `reference` (M, D), with k `neighbours`.

    Every distance is computed once, in float64, in blocks of rows. A ball's surface belongs to it for precision and
    recall, as in the paper and torch-fidelity (k = 3), and does not for density and coverage, as in prdc (k = 5 in the
    paper); this tells only between images that are equal.

    Raises:
        ValueError: the numbers of features differ, or `neighbours` is not in [1, min(N, M)).
    """
    x, y = feature_matrices(features, reference)
    if not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours: got {neighbours}, expects at least 1 and fewer than the {min(len(x), len(y))} images.")
    centre = y.mean(axis=0)  # distances lose fewer digits near zero
    x, y = x - centre, y - centre
    own, others = _squared_radii(x, neighbours), _squared_radii(y, neighbours)
    precise, recalled = np.zeros(len(x), dtype=bool), np.zeros(len(y), dtype=bool)
    densities, covered = np.zeros(len(x)), np.zeros(len(y), dtype=bool)
    for rows in row_blocks(len(x), len(y)):
        squared = _squared_distances(x[rows], y)
        precise[rows] = (squared <= others).any(axis=1)
        recalled |= (squared <= own[rows, None]).any(axis=0)
        inside = squared < others
        densities[rows] = inside.sum(axis=1) / neighbours
        covered |= inside.any(axis=0)
    return ManifoldScores(precise, recalled, densities, covered)


def _squared_radii(x: Matrix, neighbours: int) -> Matrix:
    """Squared distance (N,) of each of `x` (N, D) to its k-th nearest other."""
    radii = np.empty(len(x))
    for rows in row_blocks(len(x), len(x)):
        squared = _squared_distances(x[rows], x)
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = -1  # itself, before any copy of it
        squared.partition(neighbours, axis=1)
        radii[rows] = squared[:, neighbours]
    return radii


def _squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """(N, M). What is below the rounding of |x|^2 + |y|^2 - 2 x.y is a distance of equal images: exactly 0."""
    norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    squared = norms - 2 * (x @ y.T)
    squared[squared < 1e-12 * norms] = 0
    return squared


def _scores(inputs: MetricInputs) -> ManifoldScores:
    return manifold_scores(inputs.features, inputs.real_features, NEIGHBOURS)


def _metric(name: str, explanation: str, in_summary: bool = True) -> Metric:
    return Metric(
        name=name,
        explanation=explanation,
        compute=lambda inputs: getattr(inputs.once(_scores), name).astype(np.float64),
        higher_is_better=True,
        needs=frozenset({Need.REAL_FEATURES}),
        min_samples=NEIGHBOURS + 1,
        default="full",
        in_summary=in_summary,
        aliases=("prdc", "prc"),
    )


PRECISION = _metric("precision", "Share of generated images that lie among the real ones.")
RECALL = _metric("recall", "Share of real images that lie among the generated ones.")
DENSITY = _metric("density", "How densely real images lie around generated ones; may exceed 1.", in_summary=False)
COVERAGE = _metric("coverage", "Share of real images with a generated one nearby.")
