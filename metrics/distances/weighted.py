"""Scores of a set in which picture i counts w_i times: what resampling needs, thousands of times, without copying rows.

Each class prepares what all weightings share and is then called with weights (B, N), whole or not, for B values at once.
"""

from typing import Protocol

import numpy as np
import torch

from gendistill.metrics.distances.frechet import GaussianStatistics, factor
from gendistill.metrics.distances.kernel import gaussian_kernel, kernel_sums, polynomial_kernel
from gendistill.metrics.distances.vendi import effective_number
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, feature_matrix, row_blocks, unit_rows

BATCHED_DIM = 128  # up to here the outer products of all rows times all weights is one product of matrices


class WeightedScore(Protocol):
    """A score of `count` pictures; `dim` is the side of the matrix that each value takes the eigenvalues of, 1 if none."""

    count: int
    dim: int

    def __call__(self, weights: Matrix) -> Matrix:
        """`weights` (B, count), at least 0, to scores (B,)."""
        ...


class WeightedFrechet:
    """The Fréchet distance of weighted features to a reference; with weights of 1, `frechet_distance`.

    With the reference S_r = F F^T, tr (S S_r)^(1/2) is the sum of the roots of the eigenvalues of F^T S F, which is the
    covariance of the features times F. These are computed once. With fewer pictures than they have columns, the
    eigenvalues are those of the matrix of their inner products.
    """

    def __init__(self, features: Features, reference: GaussianStatistics) -> None:
        x = feature_matrix(features)
        if x.shape[1] != reference.dim:
            raise ValueError(f"features: got {x.shape[1]} a picture, takes {reference.dim}, as many as the reference has.")
        self.count = len(x)
        self._mean = x.mean(axis=0)
        self._centred = x - self._mean
        self._offset = self._mean - reference.mean
        self._squares = np.square(self._centred).sum(axis=1)
        self._reference_trace = float(np.trace(reference.covariance))
        projected = self._centred @ factor(reference.covariance)
        self._inner = projected @ projected.T if self.count < projected.shape[1] else None
        self._projected = projected
        self.dim = min(projected.shape)

    def __call__(self, weights: Matrix) -> Matrix:
        total = weights.sum(axis=1)
        shift = weights @ self._centred / total[:, None]  # from the unweighted mean
        trace = (weights @ self._squares - total * np.square(shift).sum(axis=1)) / _freedom(weights)
        apart = np.square(self._offset + shift).sum(axis=1)
        if self._inner is not None:
            roots = [self._root_by_inner_products(w) for w in weights]
        elif self.dim <= BATCHED_DIM:
            roots = list(_roots(_covariances(self._projected, weights)))
        else:
            roots = [_roots(_covariances(self._projected, w[None]))[0] for w in weights]
        return (apart + trace + self._reference_trace - 2 * np.array(roots)).clip(min=0)

    def _root_by_inner_products(self, w: Matrix) -> float:
        """With R R^T = diag(w) - w w^T / sum(w): the eigenvalues of R^T Y Y^T R are those of Y^T R R^T Y, Y centred by w."""
        assert self._inner is not None
        drawn = np.flatnonzero(w)
        w = w[drawn]
        s = np.sqrt(w)
        scaled = s[:, None] * self._inner[np.ix_(drawn, drawn)] * s
        unit = s / np.linalg.norm(s)
        image = scaled @ unit
        scaled -= np.outer(unit, image) + np.outer(image, unit) - (unit @ image) * np.outer(unit, unit)
        return float(_roots(scaled[None] / _freedom(w[None]))[0])


class WeightedKernelDistance:
    """The unbiased MMD^2 of KID's kernel over all pictures of both sets; the reference is not weighted.

    A picture's kernel with itself is left out also where the picture was drawn twice, as it would add a bias that the
    estimate itself does not have.
    """

    dim = 1

    def __init__(self, features: Features, reference: Features) -> None:
        self._x, y = feature_matrices(features, reference)
        self.count = len(self._x)
        ones = np.ones((1, len(y)))
        pairs = len(y) * (len(y) - 1)
        self._reference = kernel_sums(y, y, ones, ones, polynomial_kernel, without_diagonal=True)[0] / pairs
        blocks = row_blocks(len(self._x), len(y))
        self._to_reference = np.concatenate([polynomial_kernel(self._x[rows], y).mean(axis=1) for rows in blocks])

    def __call__(self, weights: Matrix) -> Matrix:
        total = weights.sum(axis=1)
        pairs = total**2 - np.square(weights).sum(axis=1)
        within = kernel_sums(self._x, self._x, weights, weights, polynomial_kernel, without_diagonal=True) / pairs
        return within + self._reference - 2 * weights @ self._to_reference / total


class WeightedCmmd:
    """CMMD of weighted pictures, with weights of 1 `cmmd`; the reference is not weighted."""

    dim = 1

    def __init__(self, embeddings: Features, reference: Features) -> None:
        x, y = feature_matrices(embeddings, reference, ("embeddings", "reference"))
        self._x, y = unit_rows(x, "embeddings"), unit_rows(y, "reference")
        self.count = len(self._x)
        share = np.full((1, len(y)), 1 / len(y))
        self._reference = kernel_sums(y, y, share, share, gaussian_kernel)[0]
        blocks = row_blocks(len(self._x), len(y))
        self._to_reference = np.concatenate([gaussian_kernel(self._x[rows], y).mean(axis=1) for rows in blocks])

    def __call__(self, weights: Matrix) -> Matrix:
        shares = weights / weights.sum(axis=1, keepdims=True)
        within = kernel_sums(self._x, self._x, shares, shares, gaussian_kernel)
        return 1000 * (within + self._reference - 2 * shares @ self._to_reference)


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


def _freedom(weights: Matrix) -> Matrix:
    """What (B,) weighted sums of squares are divided by for an unbiased variance; N - 1 with weights of 1."""
    total = weights.sum(axis=1)
    return total - np.square(weights).sum(axis=1) / total


def _covariances(y: Matrix, weights: Matrix) -> Matrix:
    """Unbiased covariances (B, R, R) of the rows of `y` (N, R), which has mean 0, weighted by `weights` (B, N)."""
    count, dim = y.shape
    freedom = _freedom(weights)[:, None, None]
    mean = weights @ y / weights.sum(axis=1, keepdims=True)
    if len(weights) == 1:
        drawn = np.flatnonzero(weights[0])
        rows = (y[drawn] - mean) * np.sqrt(weights[0, drawn] / freedom[0, 0])[:, None]
        return (rows.T @ rows)[None]
    second = np.zeros((len(weights), dim * dim))
    step = max(1, 2_000_000 // dim**2)
    for start in range(0, count, step):
        part = y[start : start + step]
        second += weights[:, start : start + step] @ (part[:, :, None] * part[:, None, :]).reshape(len(part), -1)
    total = weights.sum(axis=1)[:, None, None]
    return (second.reshape(-1, dim, dim) - total * mean[:, :, None] * mean[:, None, :]) / freedom


def _roots(covariances: Matrix) -> Matrix:
    """Trace of the root (B,) of each matrix (B, R, R); eigenvalues within rounding of zero are zero."""
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(covariances)).numpy()
    noise = 4 * np.finfo(np.float64).eps * np.abs(eigenvalues).max(axis=1, keepdims=True)
    return np.sqrt(np.where(eigenvalues > noise, eigenvalues, 0.0)).sum(axis=1)
