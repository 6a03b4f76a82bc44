"""The Fréchet distance between two sets of features, each seen as a Gaussian (Heusel et al. 2017, eq. 6)."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack

from gendistill.metrics.distances.uncertainty import Interval, Resampling, symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix
from gendistill.metrics.metric import Metric, MetricInputs, Need

# Largest error, as a share of the traces, that taking roots of eigenvalues may cost before singular values are taken.
ROOT_TOLERANCE = 1e-9
BATCHED_DIM = 128  # up to here the outer products of all rows times all weights is one product of matrices


@dataclass(frozen=True)
class GaussianStatistics:
    """The first two moments of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), unbiased (divided by count - 1)
    count: int | None  # features that they were estimated from; None: the file did not say

    @property
    def dim(self) -> int:
        """D, features a picture."""
        return len(self.mean)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, as clean-fid and pytorch-fid do and read, and `count`."""
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, dim: int | None = None) -> "GaussianStatistics":
        """Read an `.npz` of ours, clean-fid's or pytorch-fid's; nothing in it is unpickled.

        `dim`: features a picture of the extractor that they shall be compared with; None takes any.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no `.npz`, `mu` or `sigma` is missing, pickled, not finite, not symmetric or not (D,) and
                (D, D), or D is not `dim`.
        """
        mean, covariance, count = _read(path)
        if mean.ndim != 1 or covariance.shape != mean.shape * 2:
            raise ValueError(f"{path}: got mu {mean.shape} and sigma {covariance.shape}, takes (D,) and (D, D).")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{path}: got NaN or infinity in mu or sigma, takes finite numbers.")
        if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * np.abs(covariance).max(initial=0)):
            raise ValueError(f"{path}: got a sigma that is not symmetric, takes a covariance (D, D).")
        if dim is not None and len(mean) != dim:
            raise ValueError(
                f"{path}: got statistics of {len(mean)} features, takes {dim}, as many as the extractor gives; compute "
                f"them again with this extractor."
            )
        return cls(mean, covariance, count)


def _read(path: str | Path) -> tuple[Matrix, Matrix, int | None]:
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: got a file that is no .npz, takes one with 'mu' (D,) and 'sigma' (D, D).")
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(arrays.files)
        if not {"mu", "sigma"} <= set(names):
            raise ValueError(f"{path}: got arrays {names}, takes 'mu' (D,) and 'sigma' (D, D).")
        try:
            mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            count = int(arrays["count"]) if "count" in names else None
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: got arrays that are pickled, damaged or no numbers, takes plain numbers.") from error
    return mean, covariance, count


class Moments:
    """Mean and covariance of features that come in blocks: memory does not grow with their number.

    Blocks are merged about their own means (Chan, Golub & LeVeque 1979), so that features far from zero lose no digits.
    Small blocks wait until there are as many rows as features: one product of matrices then replaces many thin ones.
    """

    def __init__(self) -> None:
        self.count = 0  # merged, without those that wait
        self._mean: Matrix = np.zeros(0)
        self._scatter: Matrix = np.zeros((0, 0))  # sum of outer products of the deviations from the mean
        self._waiting: list[Matrix] = []

    def add(self, features: Features) -> None:
        """Take a block (B, D), B of at least 1; raises ValueError if D differs from that of blocks before, or not finite."""
        block = feature_matrix(features, at_least=1)
        dim = len(self._mean) if self.count else block.shape[1]
        if self._waiting:
            dim = self._waiting[0].shape[1]
        if block.shape[1] != dim:
            raise ValueError(f"features: got {block.shape[1]} a picture after blocks of {dim}, takes {dim}.")
        self._waiting.append(block.copy())  # the caller may write over its buffer
        if sum(len(rows) for rows in self._waiting) >= max(dim, 256):
            self._merge()

    def statistics(self) -> GaussianStatistics:
        """Of all that was added; more may be added later. Raises ValueError after fewer than 2 features."""
        if self._waiting:
            self._merge()
        if self.count < 2:
            raise ValueError(f"features: got {self.count}, takes at least 2 for a covariance.")
        return GaussianStatistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)

    def _merge(self) -> None:
        block = np.concatenate(self._waiting)
        self._waiting = []
        mean = block.mean(axis=0)
        block -= mean
        scatter = block.T @ block
        if self.count:
            total = self.count + len(block)
            shift = mean - self._mean
            self._scatter += scatter
            self._scatter += np.outer(shift, shift * (self.count * len(block) / total))
            self._mean = self._mean + shift * (len(block) / total)
            self.count = total
        else:
            self._mean, self._scatter, self.count = mean, scatter, len(block)


def gaussian_statistics(features: Features) -> GaussianStatistics:
    """Mean and unbiased covariance, in float64, of `features` (N, D).

    Raises:
        ValueError: not (N, D) with N >= 2, or not finite.
    """
    x = feature_matrix(features)
    mean = x.mean(axis=0)
    centred = x - mean
    return GaussianStatistics(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982); at least 0, in float64.

    With S = F F^T, tr (S_a S_b)^(1/2) is the sum of the singular values of F_a^T F_b. Taken so, nothing is lost by
    singular covariances (fewer pictures than features), which need an added epsilon where the matrix root of S_a S_b is
    taken.

    Raises:
        ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"statistics: got {a.dim} and {b.dim} features, takes equal numbers, from the same extractor on both sides."
        )
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    trace_of_root = _nuclear_norm(factor(a.covariance).T @ factor(b.covariance), ROOT_TOLERANCE * traces)
    return max(float(difference @ difference + traces - 2 * trace_of_root), 0.0)


def factor(covariance: Matrix) -> Matrix:
    """F (D, rank) with F F^T = `covariance` (D, D), symmetric and with no negative eigenvalue.

    Cholesky's factor; where the covariance is singular, Cholesky's with pivots, which stops at the rank. Either costs
    less than a tenth of the eigenvectors, which remain for covariances that rounding left with negative eigenvalues (as
    those saved in float32).
    """
    try:
        return np.linalg.cholesky(covariance).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        lower, pivots, rank, _ = lapack.dpstrf(covariance, lower=1)
        result = np.empty((len(covariance), rank))
        result[pivots - 1] = np.tril(lower)[:, :rank]
        if abs(np.trace(covariance) - np.square(result).sum()) <= 1e-10 * np.trace(covariance):
            return result
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    return eigenvectors * np.sqrt(eigenvalues.clip(min=0))


def _nuclear_norm(matrix: Matrix, tolerance: float) -> float:
    """Sum of the singular values of `matrix`, with an error below `tolerance` where rounding allows.

    The roots of the eigenvalues of M M^T come six times sooner, but an eigenvalue l is known to within a rounding error of
    the largest only, and its root to within error / (2 root(l)): where these add up to too much, the singular values.
    """
    if 0 in matrix.shape:
        return 0.0
    product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(product)).numpy().clip(min=0)
    rounding = 4 * np.finfo(np.float64).eps * eigenvalues[-1]
    roots = np.sqrt(eigenvalues)
    if np.minimum(rounding / (2 * roots + 1e-300), np.sqrt(rounding)).sum() <= tolerance:
        return float(roots.sum())
    return float(torch.linalg.svdvals(torch.from_numpy(matrix)).sum())


@dataclass(frozen=True)
class FrechetInfinity:
    """The Fréchet distance of infinitely many pictures, and the points that it was extrapolated from."""

    value: float  # where the line meets 1/N = 0; may be a little below 0 where the sets are alike
    slope: float  # rise of the distance per 1/N
    sizes: NDArray[np.int64]  # (points,) pictures in each subset
    distances: NDArray[np.float64]  # (points,)


def frechet_distance_infinity(
    features: Features, reference: GaussianStatistics, points: int = 15, smallest: int | None = None, seed: int = 0
) -> FrechetInfinity:
    """FID-infinity (Chong & Forsyth 2020, section 4): distances of random subsets, fitted by a line in 1/N.

    The sizes of the `points` subsets go evenly from `smallest` to N. The paper's `smallest` is 5,000; None takes it from
    10,000 pictures on and half of the pictures below.

    Raises:
        ValueError: the numbers of features differ, `points` is less than 2, or `smallest` is not in [2, N).
    """
    x = feature_matrix(features, at_least=3)
    if smallest is None:
        smallest = max(2, min(5000, len(x) // 2))
    if points < 2:
        raise ValueError(f"points: got {points}, takes at least 2 to fit a line.")
    if not 2 <= smallest < len(x):
        raise ValueError(f"smallest: got {smallest}, takes at least 2 and fewer than the {len(x)} pictures.")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(smallest, len(x), points).round().astype(np.int64)
    distances = np.array(
        [frechet_distance(gaussian_statistics(x[rng.permutation(len(x))[:size]]), reference) for size in sizes]
    )
    slope, value = np.polyfit(1 / sizes, distances, 1)
    return FrechetInfinity(float(value), float(slope), sizes, distances)


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


def frechet_interval(features: Features, reference: GaussianStatistics, **resampling: Unpack[Resampling]) -> Interval:
    """Of the Fréchet distance of infinitely many pictures like `features` (N, D) to `reference`, which stays as it is.

    The distance of N pictures is too large by about c / N, so the percentiles of its resamples miss the large-sample value.
    Resampling adds the same once more, which tells the bias and takes it off (`symmetric_interval`). From about N = 3 D
    on: with fewer pictures the correction is too weak (see `sample_size_warning`).

    Raises:
        ValueError: the numbers of features differ, or as `mean_interval`.
    """
    return symmetric_bootstrap(WeightedFrechet(features, reference), **resampling, at_least=0.0)


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


def _interval(inputs: MetricInputs) -> Interval:
    return frechet_interval(inputs.features, inputs.statistics, seed=inputs.seed)


FRECHET = Metric(
    name="fd",
    explanation="Fréchet distance between the features of generated and of real images.",
    compute=lambda inputs: frechet_distance(gaussian_statistics(inputs.features), inputs.statistics),
    higher_is_better=False,
    needs=frozenset({Need.REFERENCE}),
    interval=lambda inputs: inputs.once(_interval),
    interval_at_infinity=True,
    default="quick",
    aliases=("fid",),
    stems=("fid", "fd"),
    named_after="extractor",
)
FRECHET_INFINITY = Metric(
    name="fd_infinity",
    explanation="Fréchet distance extrapolated to infinitely many images.",
    compute=lambda inputs: frechet_distance_infinity(inputs.features, inputs.statistics, seed=inputs.seed).value,
    higher_is_better=False,
    needs=frozenset({Need.REFERENCE}),
    interval=lambda inputs: inputs.once(_interval),
    interval_at_infinity=True,
    min_samples=3,
    aliases=("fid_infinity",),
    stems=("fid", "fd"),
    named_after="extractor",
    ending="-infinity",
)
