"""Distances between sets of features by a kernel: KID (Binkowski et al. 2018) and CMMD (Jayasumana et al. 2024).

Both are squared maximum mean discrepancies (Gretton et al. 2012): mean k(x, x') + mean k(y, y') - 2 mean k(x, y). The
kernel is evaluated in blocks of rows, so that memory holds N numbers at a time, not N x M.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, unit_rows

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


def gaussian_kernel(x: Matrix, y: Matrix, sigma: float = 10.0) -> Matrix:
    """exp(-|x - y|^2 / (2 sigma^2)) of `x` (N, D) and `y` (M, D), (N, M)."""
    squared = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * (x @ y.T)
    return np.exp(squared.clip(min=0) / (-2 * sigma**2))


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


def cmmd(embeddings: Features, reference: Features) -> float:
    """1000 MMD^2 of `embeddings` (N, D) and `reference` (M, D) of CLIP, each scaled to length 1; at least 0.

    Gaussian kernel with sigma 10; means over all pairs, those of a picture with itself included, which is biased
    (Jayasumana et al. 2024, section 4).

    Raises:
        ValueError: the numbers of features differ, a set has fewer than 2 pictures, or an embedding is zero.
    """
    x, y = feature_matrices(embeddings, reference, ("embeddings", "reference"))
    x, y = unit_rows(x, "embeddings"), unit_rows(y, "reference")
    u, v = np.full((1, len(x)), 1 / len(x)), np.full((1, len(y)), 1 / len(y))
    within = kernel_sums(x, x, u, u, gaussian_kernel)[0] + kernel_sums(y, y, v, v, gaussian_kernel)[0]
    return max(1000 * float(within - 2 * kernel_sums(x, y, u, v, gaussian_kernel)[0]), 0.0)


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
