"""How far to trust a score: bootstrap intervals, and a warning when the sample is too small for the extractor.

Seeds are explicit: the same features, seed and resamples give the same interval.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gendistill.metrics.features.matrix import Features, Matrix

# Symmetric resamples weigh pictures by 1 +- STEP: near enough to 1 that few pictures are not as if fewer still.
STEP = 0.5
LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Interval:
    """Where the score of infinitely many pictures lies, in a share `level` of all experiments."""

    low: float
    high: float
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def wilson_interval(count: int, of: int) -> tuple[float, float]:
    """Of the probability of what was seen `count` times `of` so many (Wilson 1927)."""
    from scipy import stats  # of an extra

    interval = stats.binomtest(count, of).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


class WeightedScore(Protocol):
    """A score of `count` pictures; `dim` is the side of the matrix that each value takes the eigenvalues of, 1 if none."""

    count: int
    dim: int

    def __call__(self, weights: Matrix) -> Matrix:
        """`weights` (B, count), at least 0, to scores (B,)."""
        ...


def mean_interval(values: Features, resamples: int = 1000, seed: int = 0) -> Interval:
    """Of the mean of per-picture `values` (N,), such as CLIP scores or `ManifoldScores.precision` (Efron 1979).

    The percentile interval of the bootstrap.

    Raises:
        ValueError: not (N,) with N >= 2, or not finite.
    """
    x = picture_values(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # 100 resamples of 50,000 pictures are 40 MB of indices
        means[start : start + 100] = x[rng.integers(0, len(x), (min(100, resamples - start), len(x)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def symmetric_bootstrap(
    score: WeightedScore, resamples: int | None = None, seed: int = 0, at_least: float = -np.inf
) -> Interval:
    """Interval of `score` for infinitely many pictures; `resamples` None: as many as its dimension allows."""
    weights = symmetric_weights(score.count, resamples or affordable_resamples(score.dim), np.random.default_rng(seed))
    interval = symmetric_interval(score(weights))
    return Interval(max(interval.low, at_least), max(interval.high, at_least))


def symmetric_weights(count: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Weights (1 + 2 B, count) with B = resamples / 2: all 1; B times 1 + d with d = +-STEP; then each 1 - d.

    An exchangeable bootstrap (Praestgaard & Wellner 1993) in pairs of opposite resamples.
    """
    half = resamples // 2
    if half < 2:
        raise ValueError(f"resamples: got {resamples}, takes at least 4.")
    steps = STEP * rng.choice([-1.0, 1.0], (half, count))
    return np.concatenate([np.ones((1, count)), 1 + steps, 1 - steps])


def symmetric_interval(values: Matrix) -> Interval:
    """From the scores (1 + 2 B,) under `symmetric_weights`: estimate - bias, plus and minus Student's t times the spread.

    Half the difference of a pair is what the score answers in proportion to a deviation, scaled back from STEP to what
    sampling does; the pair's mean less the estimate is the part that is quadratic in it, of which the mean is the bias.
    The first is measured at the sample, not at the truth. A score that is quadratic there (the distance of two sets that
    are alike) so gets V + 4 q from the first and 2 q from the second, q from chance, where its true variance is V + 2 q:
    that is the difference of the two variances, and at least half the first.
    """
    from scipy import stats  # of an extra

    half = len(values) // 2
    plus, minus = values[1 : 1 + half], values[1 + half :]
    odd = (plus - minus) / (2 * STEP)
    even = ((plus + minus) / 2 - values[0]) / STEP**2
    linear = odd.var(ddof=1)
    variance = max(linear - even.var(ddof=1), linear / 2) + even.var(ddof=1) / half  # the last: the bias is a mean of B
    reach = float(stats.t.ppf((1 + LEVEL) / 2, half - 1) * np.sqrt(variance))
    centre = float(values[0] - even.mean())
    return Interval(centre - reach, centre + reach)


def affordable_resamples(dim: int) -> int:
    """200 up to 256 features, falling to 30 for 2048: the eigenvalues of each resample cost dim^3."""
    return int(np.clip(200 * 256 / dim, 30, 200))


def picture_values(values: Features, name: str = "values") -> Matrix:
    """`values` (N,) as float64; raises ValueError where not (N,) with N >= 2, or not finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"{name}: got shape {x.shape}, takes (N,) with N of at least 2.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: got NaN or infinity, takes finite numbers.")
    return x


def sample_size_warning(count: int, dim: int) -> str | None:
    """One sentence where `count` pictures are too few for a Fréchet distance of `dim` features, else None."""
    if count <= dim:
        return (
            f"{count} pictures are too few for {dim} features: the covariance is singular and the Fréchet distance far too "
            f"large; take more than {10 * dim} pictures, an extractor with fewer features, or KID, which has no such bias."
        )
    if count < 10 * dim:
        return (
            f"{count} pictures are few for {dim} features: the Fréchet distance is too large by an amount that depends on "
            f"their number; compare only scores of {count} pictures, or take {10 * dim} or more, FID-infinity or KID."
        )
    return None
