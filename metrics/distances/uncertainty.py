"""Uncertainty of a score: bootstrap intervals, and a warning if there are too few images for the extractor.

Seeds are explicit: the same features, seed and number of resamples give the same interval.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gendistill.metrics.features.matrix import Features, Matrix

# Symmetric resamples weight images by 1 +- STEP, close enough to 1 not to reduce the effective number of images much.
STEP = 0.5
LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Interval:
    """An interval that contains the score of infinitely many images with probability `level`."""

    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def wilson_interval(count: float, total: float) -> tuple[float, float]:
    """Interval of the probability of an event that occurred `count` times in `total` trials (Wilson 1927).

    Both may be fractions, for a mean with the variance of `total` independent trials.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    probability, correction = count / total, z**2 / total
    centre = (probability + correction / 2) / (1 + correction)
    margin = z / (1 + correction) * math.sqrt(probability * (1 - probability) / total + correction / (4 * total))
    return (0.0 if count == 0 else max(centre - margin, 0.0)), (1.0 if count == total else min(centre + margin, 1.0))


class WeightedScore(Protocol):
    """A score of `count` images; `dim` is the size of the matrix whose eigenvalues each value needs, 1 if none."""

    count: int
    dim: int

    def __call__(self, weights: Matrix) -> Matrix:
        """Scores (B,) for nonnegative `weights` (B, count)."""
        ...


def mean_interval(values: Features, resamples: int = 1000, seed: int = 0) -> Interval:
    """Interval of the mean of per-image `values` (N,), such as CLIP scores or `ManifoldScores.precision` (Efron 1979).

    It is the percentile interval of the bootstrap.

    Raises:
        ValueError: not (N,) with N >= 2, or not finite.
    """
    x = image_values(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # 100 resamples of 50,000 images are 40 MB of indices
        means[start : start + 100] = x[rng.integers(0, len(x), (min(100, resamples - start), len(x)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def symmetric_bootstrap(
    score: WeightedScore, resamples: int | None = None, seed: int = 0, minimum: float = -np.inf
) -> Interval:
    """Interval of `score` for infinitely many images, clipped at `minimum`; `resamples` None: `affordable_resamples`."""
    weights = symmetric_weights(score.count, resamples or affordable_resamples(score.dim), np.random.default_rng(seed))
    interval = symmetric_interval(score(weights))
    return Interval(max(interval.low, minimum), max(interval.high, minimum))


def symmetric_weights(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Weights (1 + 2 B, count) with B = resamples / 2: a row of 1; B rows 1 + d with d = +-STEP; the B rows 1 - d.

    This is an exchangeable bootstrap (Praestgaard & Wellner 1993) with antithetic pairs of resamples.
    """
    half = resamples // 2
    if half < 2:
        raise ValueError(f"resamples: got {resamples}, expects at least 4.")
    steps = STEP * rng.choice([-1.0, 1.0], (half, count))
    return np.concatenate([np.ones((1, count)), 1 + steps, 1 - steps])


def symmetric_interval(values: Matrix) -> Interval:
    """Interval from the scores (1 + 2 B,) under `symmetric_weights`: estimate - bias +- Student's t * standard error.

    Half the difference of a pair is the score's linear response to a deviation of the weights, rescaled from STEP to the
    deviation of a sample; the pair's mean minus the estimate is the quadratic response, whose mean is the bias. The linear
    response is measured at the sample, not at the true distribution. For a score that is quadratic there (the distance of
    two similar sets), the variance of the linear response is V + 4 q and that of the quadratic one 2 q, with q from the
    randomness of the sample, while the true variance of the score is V + 2 q. So the variance is the difference of the two,
    and at least half of the first.
    """
    from scipy import stats  # from an extra

    half = len(values) // 2
    plus, minus = values[1 : 1 + half], values[1 + half :]
    odd = (plus - minus) / (2 * STEP)
    even = ((plus + minus) / 2 - values[0]) / STEP**2
    linear = odd.var(ddof=1)
    variance = max(linear - even.var(ddof=1), linear / 2) + even.var(ddof=1) / half  # last term: error of the bias
    margin = float(stats.t.ppf((1 + LEVEL) / 2, half - 1) * np.sqrt(variance))
    centre = float(values[0] - even.mean())
    return Interval(centre - margin, centre + margin)


def affordable_resamples(dim: int) -> int:
    """Number of resamples: 200 up to 256 features, 30 for 2048, as the eigenvalues of each resample cost dim^3."""
    return int(np.clip(200 * 256 / dim, 30, 200))


def image_values(values: Features, name: str = "values") -> Matrix:
    """`values` (N,) as float64; raises ValueError if they are not (N,) with N >= 2, or not finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"{name}: got shape {x.shape}, expects (N,) with N of at least 2.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: got NaN or infinity, expects finite numbers.")
    return x


def sample_size_warning(count: int, dim: int) -> str | None:
    """A sentence if `count` images are too few for a Fréchet distance of `dim` features, otherwise None."""
    if count <= dim:
        return (
            f"{count} images are too few for {dim} features: the covariance is singular and the Fréchet distance far too "
            f"large; use more than {10 * dim} images, an extractor with fewer features, or KID, which has no such bias."
        )
    if count < 10 * dim:
        return (
            f"{count} images are few for {dim} features: the Fréchet distance is too large by an amount that depends on "
            f"their number; compare only scores of {count} images, or use {10 * dim} or more, FID-infinity or KID."
        )
    return None
