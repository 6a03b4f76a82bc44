"""The Fréchet distance between two sets of features, each modelled as a Gaussian (Heusel et al. 2017, eq. 6)."""

import numpy as np
import torch

from gendistill.metrics.distances.uncertainty import Interval, symmetric_bootstrap
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix, gram_eigenvalues
from gendistill.metrics.metric import Metric, MetricInputs, Need

# Maximum error of the roots of eigenvalues, as a fraction of the traces; above it, singular values are computed.
ROOT_TOLERANCE = 1e-9
POINTS = 15  # subsets from which the distance of infinitely many images is extrapolated


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982); at least 0, in float64.

    With S = F F^T, tr (S_a S_b)^(1/2) is the sum of the singular values of F_a^T F_b. This is exact for singular covariances
    too (fewer images than features), which need an added epsilon if the matrix root of S_a S_b is computed.

    Raises:
        ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics: got {a.dim} and {b.dim} features, expects equal numbers, from the same extractor.")
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    trace_of_root = _nuclear_norm(factor(a.covariance).T @ factor(b.covariance), ROOT_TOLERANCE * traces)
    return max(float(difference @ difference + traces - 2 * trace_of_root), 0.0)


def factor(covariance: Matrix) -> Matrix:
    """F (D, rank) with F F^T = `covariance` (D, D), symmetric and with no negative eigenvalue.

    This is the Cholesky factor, or for a singular covariance the pivoted Cholesky factor, which stops at the rank. Either
    costs less than the eigenvectors, which are computed for covariances with negative eigenvalues from rounding (such as
    those saved in float32).
    """
    try:
        return np.linalg.cholesky(covariance).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        result = _pivoted_factor(covariance)
        if abs(np.trace(covariance) - np.square(result).sum()) <= 1e-10 * np.trace(covariance):
            return result
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    return eigenvectors * np.sqrt(eigenvalues.clip(min=0))


def _pivoted_factor(covariance: Matrix) -> Matrix:
    """Cholesky's factor (D, rank) with pivots: each column is that of the largest variance that the ones before leave.

    It ends where no variance is left but rounding errors of the largest, as LAPACK's dpstrf does.
    """
    left = np.diag(covariance).astype(np.float64)
    smallest = len(left) * np.finfo(np.float64).eps / 2 * left.max()
    columns = np.empty(covariance.shape)  # column k in row k
    for rank in range(len(left)):
        pivot = int(left.argmax())
        if left[pivot] <= smallest:
            return columns[:rank].T
        column = covariance[pivot] - columns[:rank, pivot] @ columns[:rank]
        columns[rank] = column / np.sqrt(left[pivot])
        left -= np.square(columns[rank])
        left[pivot] = 0.0
    return columns.T


def _nuclear_norm(matrix: Matrix, tolerance: float) -> float:
    """Sum of the singular values of `matrix`, with an error below `tolerance` if rounding allows.

    The roots of the eigenvalues of M M^T are six times faster to compute, but an eigenvalue l has an error of the order of the
    rounding error of the largest, and its root one of error / (2 root(l)). If the sum of these exceeds `tolerance`, the
    singular values are computed.
    """
    if 0 in matrix.shape:
        return 0.0
    eigenvalues = gram_eigenvalues(matrix).clip(min=0)
    rounding = 4 * np.finfo(np.float64).eps * eigenvalues[-1]
    roots = np.sqrt(eigenvalues)
    if np.minimum(rounding / (2 * roots + 1e-300), np.sqrt(rounding)).sum() <= tolerance:
        return float(roots.sum())
    return float(torch.linalg.svdvals(torch.from_numpy(matrix)).sum())


def frechet_distance_infinity(features: Features, reference: GaussianStatistics, seed: int = 0) -> float:
    """FID-infinity (Chong & Forsyth 2020, section 4): the intercept of a line in 1/N through distances of random subsets.

    The sizes of the `POINTS` subsets are evenly spaced from the paper's 5,000, or from N / 2 if N is below 10,000, to N.
    The result may be slightly negative for similar sets.

    Raises:
        ValueError: the numbers of features differ, or there are fewer than 3 images.
    """
    x = feature_matrix(features, min_rows=3)
    rng = np.random.default_rng(seed)
    sizes = np.linspace(max(2, min(5000, len(x) // 2)), len(x), POINTS).round().astype(np.int64)
    subsets = (x[rng.permutation(len(x))[:size]] for size in sizes)
    distances = [frechet_distance(gaussian_statistics(subset), reference) for subset in subsets]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


class WeightedFrechet:
    """The Fréchet distance of weighted features to a reference, equal to `frechet_distance` for weights of 1.

    With the reference S_r = F F^T, tr (S S_r)^(1/2) is the sum of the roots of the eigenvalues of F^T S F, which is the
    covariance of the features times F. These products are computed once.

    Raises:
        ValueError: the numbers of features differ.
    """

    def __init__(self, features: Features, reference: GaussianStatistics) -> None:
        x = feature_matrix(features)
        if x.shape[1] != reference.dim:
            raise ValueError(f"features: got {x.shape[1]} per image, expects {reference.dim}, as many as the reference has.")
        self.count = len(x)
        self._centred = x - x.mean(axis=0)
        self._offset = x.mean(axis=0) - reference.mean
        self._reference_trace = float(np.trace(reference.covariance))
        self._projected = self._centred @ factor(reference.covariance)
        self.dim = max(min(self._projected.shape), 1)

    def __call__(self, weights: Matrix) -> Matrix:
        return np.array([self._distance(w) for w in weights]).clip(min=0)

    def _distance(self, weights: Matrix) -> float:
        present = weights > 0
        w = weights[present]
        total = w.sum()
        freedom = total - w @ w / total  # for an unbiased covariance: N - 1 with weights of 1
        x, y = self._centred[present], self._projected[present]
        shift = w @ x / total
        trace = (w @ np.square(x).sum(axis=1) - total * shift @ shift) / freedom
        eigenvalues = gram_eigenvalues((y - w @ y / total) * np.sqrt(w / freedom)[:, None])
        noise = (
            4 * np.finfo(np.float64).eps * np.abs(eigenvalues).max(initial=0.0)
        )  # eigenvalues within rounding of zero are zero
        trace_of_root = np.sqrt(eigenvalues[eigenvalues > noise]).sum()
        return float(np.square(self._offset + shift).sum() + trace + self._reference_trace - 2 * trace_of_root)


def _interval(inputs: MetricInputs) -> Interval:
    """Interval of the distance of infinitely many images to the fixed `inputs.statistics`.

    The distance of N images has a positive bias of about c / N, so the percentiles of its resamples miss the value of
    infinitely many images. Resampling adds the same bias once more, so that it can be estimated and subtracted
    (`symmetric_interval`). With fewer images than about N = 3 D the correction is too weak (see `sample_size_warning`).
    """
    return symmetric_bootstrap(WeightedFrechet(inputs.features, inputs.statistics), seed=inputs.seed, minimum=0.0)


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
    compute=lambda inputs: frechet_distance_infinity(inputs.features, inputs.statistics, seed=inputs.seed),
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
