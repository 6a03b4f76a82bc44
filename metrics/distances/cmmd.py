"""CMMD: the maximum mean discrepancy of CLIP's embeddings (Jayasumana et al. 2024)."""

from collections.abc import Hashable, Sequence

import numpy as np

from gendistill.metrics.distances.kernel import kernel_sums
from gendistill.metrics.distances.uncertainty import Interval, symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, unit_rows
from gendistill.metrics.metric import Metric, Need


def gaussian_kernel(x: Matrix, y: Matrix, sigma: float = 10.0) -> Matrix:
    """exp(-|x - y|^2 / (2 sigma^2)) of `x` (N, D) and `y` (M, D), (N, M)."""
    squared = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * (x @ y.T)
    return np.exp(squared.clip(min=0) / (-2 * sigma**2))


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


def cmmd_interval(
    embeddings: Features,
    reference: Features,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """Of CMMD for infinitely many pictures like `embeddings` (N, E), its bias taken off; `reference` stays as it is.

    Raises:
        ValueError: as `cmmd` and `mean_interval`.
    """
    return symmetric_bootstrap(WeightedCmmd(embeddings, reference), groups, level, resamples, seed, at_least=0.0)


CMMD = Metric(
    name="cmmd",
    explanation="Maximum mean discrepancy of CLIP embeddings of generated and of real images, times 1000.",
    compute=lambda inputs: cmmd(inputs.image_embeddings, inputs.real_image_embeddings),
    higher_is_better=False,
    needs=frozenset({Need.CLIP_REFERENCE}),
    interval=lambda inputs: cmmd_interval(inputs.image_embeddings, inputs.real_image_embeddings, seed=inputs.seed),
    stems=("cmmd",),
    named_after="clip",
)
