"""Diversity of a set of images: the Vendi score (Friedman & Dieng 2023)."""

import numpy as np

from gendistill.metrics.distances.uncertainty import symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix, gram_eigenvalues, unit_rows
from gendistill.metrics.metric import Metric


def vendi_score(features: Features) -> float:
    """The effective number of different images in `features` (N, D), in [1, min(N, D)], from their cosine similarities.

    It is the exponential of the Shannon entropy of the eigenvalues of K / N, with K the matrix of cosine similarities
    (Friedman & Dieng 2023, eq. 3).

    Raises:
        ValueError: not (N, D) with N >= 1, or an image's features are zero.
    """
    return _effective_number(unit_rows(feature_matrix(features, min_rows=1)))


def _effective_number(rows: Matrix) -> float:
    eigenvalues = gram_eigenvalues(rows)
    fractions = eigenvalues / np.square(rows).sum()
    present = fractions[fractions > len(fractions) * np.finfo(np.float64).eps * fractions.max()]  # above rounding error
    return float(np.exp(-(present * np.log(present)).sum()))


class WeightedVendi:
    """The Vendi score of weighted images, equal to `vendi_score` for weights of 1."""

    def __init__(self, features: Features) -> None:
        self._x = unit_rows(feature_matrix(features))
        self.count, self.dim = len(self._x), min(self._x.shape)

    def __call__(self, weights: Matrix) -> Matrix:
        return np.array([_effective_number(np.sqrt(w)[:, None] * self._x) for w in weights])


VENDI = Metric(
    name="vendi",
    explanation="Effective number of different images.",
    compute=lambda inputs: vendi_score(inputs.features),
    higher_is_better=True,
    interval=lambda inputs: symmetric_bootstrap(WeightedVendi(inputs.features), seed=inputs.seed, minimum=1.0),
    interval_at_infinity=True,
    default="full",
    in_summary=False,
    digits=1,
)
