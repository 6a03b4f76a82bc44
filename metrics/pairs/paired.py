"""Is one model better than another on the same prompts and seeds? Permutation tests that swap the images of a pair."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gendistill.metrics.distances.frechet import WeightedFrechet
from gendistill.metrics.distances.uncertainty import (
    Interval,
    affordable_resamples,
    image_values,
    mean_interval,
    symmetric_interval,
    symmetric_weights,
)
from gendistill.metrics.features.gaussian import GaussianStatistics
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices


@dataclass(frozen=True)
class PairedTest:
    """The difference A - B of a score of two models over `n` pairs of images; a pair has one prompt and one seed."""

    difference: float
    interval: Interval  # interval of the difference for infinitely many pairs
    p_value: float  # probability of a difference as large, if the two models were equal
    n: int
    higher_is_better: bool

    @property
    def significant(self) -> bool:
        """Whether the models differ at the interval's level."""
        return self.p_value <= 1 - self.interval.level

    def describe(self, a: str = "A", b: str = "B") -> str:
        """One sentence about the models named `a` and `b`."""
        level = f"{100 * self.interval.level:g} % interval"
        p = f"p = {self.p_value:.2g}"
        if not self.significant:
            return (
                f"{a} and {b} do not differ significantly: the difference is {self.difference:.3g} "
                f"({level} {self.interval}, {p}, {self.n} pairs)."
            )
        winner, loser = (a, b) if (self.difference > 0) == self.higher_is_better else (b, a)
        low, high = self.interval.low, self.interval.high
        if self.difference < 0:  # reported as the winner's lead, whatever the score's sign
            low, high = -high, -low
        return (
            f"{winner} is better than {loser} by {abs(self.difference):.3g} ({level} {low:.3g} to {high:.3g}, {p}, "
            f"{self.n} pairs)."
        )


def paired_test(a: Features, b: Features, higher_is_better: bool = True, resamples: int = 9999, seed: int = 0) -> PairedTest:
    """Sign-flip permutation test of the mean difference of per-image scores `a` and `b` (N,) (Fisher 1935, section 21).

    The p-value is two-sided, over `resamples` random sign patterns, and so at least 1 / (resamples + 1).

    Raises:
        ValueError: the shapes differ, or `mean_interval` raises.
    """
    x, y = image_values(a, "a"), image_values(b, "b")
    if len(x) != len(y):
        raise ValueError(f"b: got {len(y)} scores for {len(x)} of a, expects one for each pair.")
    difference = x - y
    rng = np.random.default_rng(seed)
    flipped = np.empty(resamples)
    for start in range(0, resamples, 200):
        signs = rng.integers(0, 2, (min(200, resamples - start), len(x)), dtype=np.int8)
        flipped[start : start + 200] = 2 * (signs.astype(np.float64) @ difference) - difference.sum()
    p_value = _fraction_as_large(difference.sum(), flipped, scale=np.abs(difference).sum())
    interval = mean_interval(difference, seed=seed)
    return PairedTest(float(difference.mean()), interval, p_value, len(x), higher_is_better)


def paired_test_frechet(
    a: Features, b: Features, reference: GaussianStatistics, resamples: int | None = None, seed: int = 0
) -> PairedTest:
    """Paired test of the Fréchet distances of `a` and `b` (N, D) to `reference`; row i of both has one prompt and seed.

    The p-value comes from swapping the images of random pairs, the interval from resampling the pairs; the interval is
    corrected for the bias of finite sets. `resamples` None: 200 up to 256 features, 30 for 2048.

    Raises:
        ValueError: the shapes differ, or the reference has another number of features.
    """
    x, y = feature_matrices(a, b, ("a", "b"))
    if len(x) != len(y):
        raise ValueError(f"b: got {len(y)} images for {len(x)} of a, expects one for each pair.")
    # The images of A are followed by those of B; a set is a vector of weights, zero for the images of the other set.
    score, n = WeightedFrechet(np.concatenate([x, y]), reference), len(x)
    resamples = resamples or affordable_resamples(score.dim)
    rng = np.random.default_rng(seed)
    weights = symmetric_weights(n, resamples, rng)
    unswapped = rng.integers(0, 2, (resamples, n)).astype(np.float64)
    first = np.concatenate([np.hstack([weights, 0 * weights]), np.hstack([unswapped, 1 - unswapped])])
    differences = score(first) - score(np.roll(first, n, axis=1))
    resampled, swapped = differences[: len(weights)], differences[len(weights) :]
    p_value = _fraction_as_large(float(resampled[0]), swapped, scale=float(np.abs(swapped).max()))
    return PairedTest(float(resampled[0]), symmetric_interval(resampled), p_value, n, higher_is_better=False)


def _fraction_as_large(observed: float, permuted: Matrix, scale: float) -> float:
    """Two-sided p-value of `observed` among `permuted` (B,), with `observed` itself counted (Phipson & Smyth 2010).

    Fewer than 100 permutations could give no p-value below 0.01; then it is the p-value of Student's t, scaled to the spread
    of the permutations about zero, as swapping within pairs is symmetric.
    """
    if len(permuted) < 100:
        spread = float(np.sqrt(np.square(permuted).mean()))
        return float(2 * stats.t.sf(abs(observed) / spread, len(permuted))) if spread > 0 else 1.0
    as_large = np.abs(permuted) >= abs(observed) - 1e-12 * scale
    return float((1 + as_large.sum()) / (1 + len(permuted)))
