"""The kernel distance between sets of features (KID, Binkowski et al. 2018) and sums of kernels.

The distance is a squared maximum mean discrepancy (Gretton et al. 2012): mean k(x, x') + mean k(y, y') - 2 mean k(x, y).
The kernel is evaluated in blocks of rows, so that memory grows with N, not with N x M.
"""

from collections.abc import Callable

import numpy as np

from gendistill.metrics.distances.uncertainty import symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks
from gendistill.metrics.metric import Metric, Need

Kernel = Callable[[Matrix, Matrix], Matrix]  # (N, D), (M, D) to (N, M)


def polynomial_kernel(x: Matrix, y: Matrix) -> Matrix:
    """(x . y / D + 1)^3, (N, M), for `x` (N, D) and `y` (M, D) (Binkowski et al. 2018, section 4)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base


def kernel_sums(x: Matrix, weights: Matrix, kernel: Kernel, without_diagonal: bool = False) -> Matrix:
    """Sum over i, j of w_bi k(x_i, x_j) w_bj, (B,), for each row b of the `weights` (B, N).

    `without_diagonal` leaves out i = j. Many rows of weights cost little more than one, as the kernel is evaluated once.
    """
    sums = np.zeros(len(weights))
    for rows in row_blocks(len(x), len(x)):
        block = kernel(x[rows], x)
        if without_diagonal:
            block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = 0
        sums += np.einsum("bi,ib->b", weights[:, rows], block @ weights.T)
    return sums


def kid(
    features: Features, reference: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID as published: mean and standard deviation (over n, not n - 1) of the unbiased MMD^2 of random subsets.

    `features` (N, D) are compared with `reference` (M, D) by a polynomial kernel of degree 3 (Binkowski et al. 2018,
    section 4). The subsets are those of torch-fidelity with the same seed (2020 is its default) and the same order of the
    sets; a `subset_size` above the size of a set is reduced to it, where torch-fidelity raises. The mean may be negative.

    Raises:
        ValueError: the numbers of features differ, `subsets` is below 1 or `subset_size` below 2.
    """
    x, y = feature_matrices(features, reference)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets: got {subsets} of {subset_size} images, expects at least 1 of at least 2.")
    size = min(subset_size, len(x), len(y))
    rng = np.random.RandomState(seed)  # torch-fidelity's generator, for equal subsets
    values = [
        kid_of_all(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kid_of_all(features: Features, reference: Features) -> float:
    """The unbiased MMD^2 of KID's kernel over all images of both sets at once (Gretton et al. 2012, eq. 3).

    Raises:
        ValueError: the numbers of features differ, or a set has fewer than 2 images.
    """
    score = weighted_kid(features, reference)
    return float(score(np.ones((1, score.count)))[0])


class WeightedMmd:
    """The squared MMD of weighted images to an unweighted reference.

    `unbiased` leaves out the kernel of an image with itself, also for an image that was resampled twice, which would add a
    bias that the estimate itself does not have.
    """

    dim = 1

    def __init__(self, x: Matrix, y: Matrix, kernel: Kernel, *, unbiased: bool, scale: float = 1.0) -> None:
        self._x, self._kernel, self._unbiased, self._scale = x, kernel, unbiased, scale
        self.count = len(x)
        self._reference = self._within(y, np.full((1, len(y)), 1 / len(y)))
        blocks = row_blocks(len(x), len(y))
        self._to_reference = np.concatenate([kernel(x[rows], y).mean(axis=1) for rows in blocks])

    def __call__(self, weights: Matrix) -> Matrix:
        fractions = weights / weights.sum(axis=1, keepdims=True)
        return self._scale * (self._within(self._x, fractions) + self._reference - 2 * fractions @ self._to_reference)

    def _within(self, x: Matrix, fractions: Matrix) -> Matrix:
        sums = kernel_sums(x, fractions, self._kernel, without_diagonal=self._unbiased)
        return sums / (1 - np.square(fractions).sum(axis=1)) if self._unbiased else sums


def weighted_kid(features: Features, reference: Features) -> WeightedMmd:
    """`kid_of_all` of weighted images; raises ValueError as `kid_of_all`."""
    return WeightedMmd(*feature_matrices(features, reference), polynomial_kernel, unbiased=True)


KERNEL_DISTANCE = Metric(
    name="kid",
    explanation="Kernel distance: an unbiased MMD² of the same features, times 1000.",
    compute=lambda inputs: kid_of_all(inputs.features, inputs.real_features),
    higher_is_better=False,
    needs=frozenset({Need.REAL_FEATURES}),
    interval=lambda inputs: symmetric_bootstrap(weighted_kid(inputs.features, inputs.real_features), seed=inputs.seed),
    default="full",
    in_summary=False,
    scale=1000,
    aliases=("kd",),
    stems=("kid", "kd"),
    named_after="extractor",
)
