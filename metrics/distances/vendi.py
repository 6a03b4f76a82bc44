"""How different the pictures of one set are from each other: the Vendi score (Friedman & Dieng 2023)."""

from typing import Unpack

import numpy as np
import torch

from gendistill.metrics.distances.uncertainty import Interval, Resampling, symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix, unit_rows
from gendistill.metrics.metric import Metric


def vendi_score(features: Features, order: float = 1.0) -> float:
    """The effective number of different pictures in `features` (N, D), in [1, min(N, D)], by their cosines.

    The exponential of Rényi's entropy of `order` q of the eigenvalues of K / N, K the matrix of cosines (Friedman & Dieng
    2023, eq. 3; orders: Pasarkar & Dieng 2024, eq. 2); q = 1 is Shannon's, q = infinity heeds the largest eigenvalue
    only. With fewer features than pictures, the eigenvalues are those of the (D, D) second moment of the unit features.

    Raises:
        ValueError: not (N, D) with N >= 1, a picture's features are zero, or `order` is below 0.
    """
    x = unit_rows(feature_matrix(features, at_least=1))
    moment = x.T @ x if x.shape[1] < len(x) else x @ x.T
    # torch's eigenvalues come sooner than numpy's: 0.3 s against 0.7 s of 2048 features on one core.
    return float(effective_number(torch.linalg.eigvalsh(torch.from_numpy(moment / len(x))).numpy(), order))


def effective_number(eigenvalues: Matrix, order: float) -> Matrix:
    """Hill's number of `order` of shares (..., R) that sum up to 1: (...). Rounding below zero counts as zero."""
    if order < 0:
        raise ValueError(f"order: got {order}, takes 0 or more.")
    noise = eigenvalues.shape[-1] * np.finfo(np.float64).eps * eigenvalues.max(axis=-1, keepdims=True)
    present = eigenvalues > noise
    shares = np.where(present, eigenvalues, 1.0)
    if order == 1:
        return np.exp(-(shares * np.log(shares)).sum(axis=-1))
    if np.isinf(order):
        return 1 / eigenvalues.max(axis=-1)
    return np.where(present, shares**order, 0.0).sum(axis=-1) ** (1 / (1 - order))


class WeightedVendi:
    """The Vendi score of weighted pictures; with weights of 1, `vendi_score`."""

    def __init__(self, features: Features, order: float = 1.0) -> None:
        self._x, self._order = unit_rows(feature_matrix(features)), order
        self.count = len(self._x)
        self._inner = self._x @ self._x.T if self.count <= self._x.shape[1] else None
        self.dim = min(self._x.shape)

    def __call__(self, weights: Matrix) -> Matrix:
        scores = []
        for w in weights / weights.sum(axis=1, keepdims=True):
            s = np.sqrt(w)[:, None]
            rows = s * self._x
            moment = rows.T @ rows if self._inner is None else s * self._inner * s.T
            scores.append(effective_number(torch.linalg.eigvalsh(torch.from_numpy(moment)).numpy(), self._order))
        return np.array(scores)


def vendi_interval(features: Features, order: float = 1.0, **resampling: Unpack[Resampling]) -> Interval:
    """Of the Vendi score for infinitely many pictures like `features` (N, D), corrected as the Fréchet distance is.

    Raises:
        ValueError: as `vendi_score` and `mean_interval`.
    """
    return symmetric_bootstrap(WeightedVendi(features, order), **resampling, at_least=1.0)


VENDI = Metric(
    name="vendi",
    explanation="Effective number of different images.",
    compute=lambda inputs: vendi_score(inputs.features),
    higher_is_better=True,
    interval=lambda inputs: vendi_interval(inputs.features, seed=inputs.seed),
    interval_at_infinity=True,
    default="full",
    in_summary=False,
    digits=1,
)
