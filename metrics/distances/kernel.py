"""The kernel distance between sets of features, KID (Binkowski et al. 2018), and sums of kernels.

It is a squared maximum mean discrepancy (Gretton et al. 2012): mean k(x, x') + mean k(y, y') - 2 mean k(x, y). The
kernel is evaluated in blocks of rows, so that memory holds N numbers at a time, not N x M.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from gendistill.metrics.distances.uncertainty import Interval, Resampling, symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks
from gendistill.metrics.metric import Metric, Need

Kernel = Callable[[Matrix, Matrix], Matrix]  # (N, D), (M, D) to (N, M)


@dataclass(frozen=True)
class KernelDistance:
    """KID as it is published: mean and standard deviation (over n, not n - 1) of the unbiased MMD^2 of random subsets."""

    mean: float  # may be below 0: the estimator is unbiased
    std: float
    subsets: int
    subset_size: int


def polynomial_kernel(x: Matrix, y: Matrix) -> Matrix:
    """(x . y / D + 1)^3 of `x` (N, D) and `y` (M, D), (N, M) (Binkowski et al. 2018, section 4)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base


def kernel_sums(x: Matrix, y: Matrix, u: Matrix, v: Matrix, kernel: Kernel, without_diagonal: bool = False) -> Matrix:
    """sum over i, j of u_bi k(x_i, y_j) v_bj for each row b of the weights `u` (B, N) and `v` (B, M): (B,).

    `without_diagonal` leaves out i = j, for `x` and `y` that are one set. Many weightings cost little more than one, as
    the kernel is evaluated once.
    """
    sums = np.zeros(len(u))
    for rows in row_blocks(len(x), len(y)):
        block = kernel(x[rows], y)
        if without_diagonal:
            block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = 0
        sums += np.einsum("bi,ib->b", u[:, rows], block @ v.T)
    return sums


def kid(
    features: Features, reference: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """KID of `features` (N, D) against `reference` (M, D), polynomial kernel of degree 3 (Binkowski et al. 2018, section 4).

    The subsets are those that torch-fidelity draws with the same seed (2020 is its default) and the same order of sets;
    `subset_size` is cut down to the smaller set, where torch-fidelity refuses.

    Raises:
        ValueError: the numbers of features differ, `subsets` is below 1 or `subset_size` below 2.
    """
    x, y = feature_matrices(features, reference)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets: got {subsets} of {subset_size} pictures, takes at least 1 of at least 2.")
    size = min(subset_size, len(x), len(y))
    rng = np.random.RandomState(seed)  # torch-fidelity's generator, for equal subsets
    draws = [(rng.choice(len(x), size, replace=False), rng.choice(len(y), size, replace=False)) for _ in range(subsets)]
    if (len(x) + len(y)) ** 2 < 3 * subsets * size**2:  # the whole kernel once costs less than each subset's
        values = _mmd2_unbiased(x, y, *(_indicators(len(z), [draw[i] for draw in draws]) for i, z in enumerate((x, y))))
    else:
        ones = np.ones((1, size))
        values = np.concatenate([_mmd2_unbiased(x[chosen], y[other], ones, ones) for chosen, other in draws])
    return KernelDistance(float(values.mean()), float(values.std()), subsets, size)


def kid_of_all(features: Features, reference: Features) -> float:
    """The unbiased MMD^2 of KID's kernel over all pictures of both sets at once (Gretton et al. 2012, eq. 3).

    Raises:
        ValueError: the numbers of features differ, or a set has fewer than 2 pictures.
    """
    x, y = feature_matrices(features, reference)
    return float(_mmd2_unbiased(x, y, np.ones((1, len(x))), np.ones((1, len(y))))[0])


def _mmd2_unbiased(x: Matrix, y: Matrix, u: Matrix, v: Matrix) -> Matrix:
    """Of the subsets whose members have 1 in the rows of `u` (B, N) and `v` (B, M); all of one size each: (B,)."""
    m, n = u[0].sum(), v[0].sum()
    return (
        kernel_sums(x, x, u, u, polynomial_kernel, without_diagonal=True) / (m * (m - 1))
        + kernel_sums(y, y, v, v, polynomial_kernel, without_diagonal=True) / (n * (n - 1))
        - 2 * kernel_sums(x, y, u, v, polynomial_kernel) / (m * n)
    )


def _indicators(count: int, subsets: list[np.ndarray]) -> Matrix:
    indicators = np.zeros((len(subsets), count))
    for row, chosen in zip(indicators, subsets, strict=True):
        row[chosen] = 1
    return indicators


class WeightedMmd:
    """The squared MMD of weighted images to a reference, which is not weighted, by a kernel.

    `unbiased` leaves out an image's kernel with itself, also where the image was drawn twice, as it would add a bias that the
    estimate itself does not have.
    """

    dim = 1

    def __init__(self, x: Matrix, y: Matrix, kernel: Kernel, *, unbiased: bool, scale: float = 1.0) -> None:
        self._x, self._kernel, self._unbiased, self._scale = x, kernel, unbiased, scale
        self.count = len(x)
        self._reference = self._within(y, np.full((1, len(y)), 1 / len(y)))
        blocks = row_blocks(len(x), len(y))
        self._to_reference = np.concatenate([kernel(x[rows], y).mean(axis=1) for rows in blocks])

    def __call__(self, weights: Matrix) -> Matrix:
        shares = weights / weights.sum(axis=1, keepdims=True)
        return self._scale * (self._within(self._x, shares) + self._reference - 2 * shares @ self._to_reference)

    def _within(self, x: Matrix, shares: Matrix) -> Matrix:
        sums = kernel_sums(x, x, shares, shares, self._kernel, without_diagonal=self._unbiased)
        return sums / (1 - np.square(shares).sum(axis=1)) if self._unbiased else sums


def weighted_kid(features: Features, reference: Features) -> WeightedMmd:
    """`kid_of_all` of weighted images; raises ValueError as that does."""
    return WeightedMmd(*feature_matrices(features, reference), polynomial_kernel, unbiased=True)


def kernel_interval(features: Features, reference: Features, **resampling: Unpack[Resampling]) -> Interval:
    """Of KID (all pictures, `kid_of_all`) for infinitely many pictures like `features` (N, D); `reference` stays as it is.

    Raises:
        ValueError: the numbers of features differ, or as `mean_interval`.
    """
    return symmetric_bootstrap(weighted_kid(features, reference), **resampling)


KERNEL_DISTANCE = Metric(
    name="kid",
    explanation="Kernel distance: an unbiased MMD² of the same features, times 1000.",
    compute=lambda inputs: kid_of_all(inputs.features, inputs.real_features),
    higher_is_better=False,
    needs=frozenset({Need.REAL_FEATURES}),
    interval=lambda inputs: kernel_interval(inputs.features, inputs.real_features, seed=inputs.seed),
    default="full",
    in_summary=False,
    scale=1000,
    aliases=("kd",),
    stems=("kid", "kd"),
    named_after="extractor",
)
