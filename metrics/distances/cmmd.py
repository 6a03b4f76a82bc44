"""CMMD: the maximum mean discrepancy of CLIP embeddings (Jayasumana et al. 2024)."""

import numpy as np

from gendistill.metrics.distances.kernel import WeightedMmd
from gendistill.metrics.distances.uncertainty import symmetric_bootstrap
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, unit_rows
from gendistill.metrics.metric import Metric, Need


def gaussian_kernel(x: Matrix, y: Matrix, sigma: float = 10.0) -> Matrix:
    """exp(-|x - y|^2 / (2 sigma^2)), (N, M), for `x` (N, D) and `y` (M, D)."""
    squared = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * (x @ y.T)
    return np.exp(squared.clip(min=0) / (-2 * sigma**2))


def cmmd(embeddings: Features, reference: Features) -> float:
    """1000 MMD^2 of the CLIP embeddings `embeddings` (N, D) and `reference` (M, D), each scaled to length 1; at least 0.

    The kernel is a Gaussian with sigma 10. The estimate is the biased one: its means include the pairs of an image with itself
    (Jayasumana et al. 2024, section 4).

    Raises:
        ValueError: the numbers of features differ, a set has fewer than 2 images, or an embedding is zero.
    """
    score = weighted_cmmd(embeddings, reference)
    return max(float(score(np.ones((1, score.count)))[0]), 0.0)


def weighted_cmmd(embeddings: Features, reference: Features) -> WeightedMmd:
    """`cmmd` of weighted images, but not clipped at 0; raises ValueError as `cmmd`."""
    x, y = feature_matrices(embeddings, reference, ("embeddings", "reference"))
    return WeightedMmd(unit_rows(x, "embeddings"), unit_rows(y, "reference"), gaussian_kernel, unbiased=False, scale=1000)


CMMD = Metric(
    name="cmmd",
    explanation="Maximum mean discrepancy of CLIP embeddings of generated and of real images, times 1000.",
    compute=lambda inputs: cmmd(inputs.image_embeddings, inputs.real_image_embeddings),
    higher_is_better=False,
    needs=frozenset({Need.CLIP_REFERENCE}),
    interval=lambda inputs: symmetric_bootstrap(
        weighted_cmmd(inputs.image_embeddings, inputs.real_image_embeddings), seed=inputs.seed, minimum=0.0
    ),
    stems=("cmmd",),
    named_after="clip",
)
