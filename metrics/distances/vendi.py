"""How different the images of one set are from each other: the Vendi score (Friedman & Dieng 2023)."""

import numpy as np

from gendistill.metrics.distances.uncertainty import symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix, gram_eigenvalues, unit_rows
from gendistill.metrics.metric import Metric


def vendi_score(features: Features) -> float:
    """The effective number of different images in `features` (N, D), in [1, min(N, D)], by their cosines.

    The exponential of Shannon's entropy of the eigenvalues of K / N, K the matrix of cosines (Friedman & Dieng 2023, eq. 3).

    Raises:
        ValueError: not (N, D) with N >= 1, or an image's features are zero.
    """
    return _effective_number(unit_rows(feature_matrix(features, at_least=1)))


def _effective_number(rows: Matrix) -> float:
    eigenvalues = gram_eigenvalues(rows)
    shares = eigenvalues / np.square(rows).sum()
    present = shares[shares > len(shares) * np.finfo(np.float64).eps * shares.max()]  # rounding is no image
    return float(np.exp(-(present * np.log(present)).sum()))


class WeightedVendi:
    """The Vendi score of weighted images; with weights of 1, `vendi_score`."""

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
    interval=lambda inputs: symmetric_bootstrap(WeightedVendi(inputs.features), seed=inputs.seed, at_least=1.0),
    interval_at_infinity=True,
    default="full",
    in_summary=False,
    digits=1,
)
