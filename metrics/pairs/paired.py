"""Is one model better than another on the same prompts and seeds? Tests that swap within the pairs."""

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
    """The difference A - B of a score of two models over `n` pairs of images, same prompt and seed in each."""

    difference: float
    interval: Interval  # of the difference for infinitely many pairs
    p_value: float  # how often swapping within the pairs gives a difference as large, were the models alike
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
                f"{a} and {b} cannot be told apart: they differ by {self.difference:.3g} ({level} {self.interval}, {p}, "
                f"{self.n} pairs)."
            )
        winner, loser = (a, b) if (self.difference > 0) == self.higher_is_better else (b, a)
        low, high = self.interval.low, self.interval.high
        if self.difference < 0:  # told as the winner's lead, whatever the score's sign
            low, high = -high, -low
        return (
            f"{winner} is better than {loser} by {abs(self.difference):.3g} ({level} {low:.3g} to {high:.3g}, {p}, "
            f"{self.n} pairs)."
        )


def paired_test(a: Features, b: Features, higher_is_better: bool = True, resamples: int = 9999, seed: int = 0) -> PairedTest:
    """Of per-image scores `a` and `b` (N,): sign-flip permutation test of the mean difference (Fisher 1935, section 21).

    The p-value counts both directions; `resamples` random sign patterns, so it is at least 1 / (resamples + 1).

    Raises:
        ValueError: shapes differ, or as `mean_interval`.
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
    """Of the Fréchet distances of `a` and `b` (N, D), row i of both sampled from one prompt and seed, to `reference`.

    Swaps the members of random pairs between the sets for the p-value, and samples pairs for the interval, which is
    corrected for the bias of finite sets. `resamples` None: 200 up to 256 features, 30 for 2048.

    Raises:
        ValueError: shapes differ, or the reference has another number of features.
    """
    x, y = feature_matrices(a, b, ("a", "b"))
    if len(x) != len(y):
        raise ValueError(f"b: got {len(y)} images for {len(x)} of a, expects one for each pair.")
    # Over the images of A and then those of B; a set is a weighting that has zeros where it has no image.
    score, n = WeightedFrechet(np.concatenate([x, y]), reference), len(x)
    resamples = resamples or affordable_resamples(score.dim)
    rng = np.random.default_rng(seed)
    generated = symmetric_weights(n, resamples, rng)
    stays = rng.integers(0, 2, (resamples, n)).astype(np.float64)
    first = np.concatenate([np.hstack([generated, 0 * generated]), np.hstack([stays, 1 - stays])])
    differences = score(first) - score(np.roll(first, n, axis=1))
    resampled, swapped = differences[: len(generated)], differences[len(generated) :]
    p_value = _fraction_as_large(float(resampled[0]), swapped, scale=float(np.abs(swapped).max()))
    return PairedTest(float(resampled[0]), symmetric_interval(resampled), p_value, n, higher_is_better=False)


def _fraction_as_large(observed: float, permuted: Matrix, scale: float) -> float:
    """Two-sided p-value of `observed` among `permuted` (B,), itself counted (Phipson & Smyth 2010).

    With fewer than 100, which could show no p below 0.01, that of a normal with their spread about zero: swapping within
    pairs is symmetric.
    """
    if len(permuted) < 100:
        spread = float(np.sqrt(np.square(permuted).mean()))
        return float(2 * stats.t.sf(abs(observed) / spread, len(permuted))) if spread > 0 else 1.0
    as_large = np.abs(permuted) >= abs(observed) - 1e-12 * scale
    return float((1 + as_large.sum()) / (1 + len(permuted)))
