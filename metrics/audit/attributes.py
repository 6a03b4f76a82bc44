"""Attribute bias: the share of each value of an attribute among images whose prompts leave it open.

A probe, fitted to real images whose captions name the value, reads it from sampled ones. It errs, so every share stands
beside the accuracy that it had on images it was not fitted to.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from gendistill.metrics.audit.groups import SHOWN
from gendistill.metrics.audit.probe import LinearProbe
from gendistill.metrics.distances.uncertainty import LEVEL, wilson_interval
from gendistill.metrics.features.matrix import Features


@dataclass(frozen=True)
class ValueFraction:
    """One value: its share of teacher's and student's images, with Wilson intervals.

    recall: of the images of this value that the probe was tested on, the share that it recognises. difference: student -
    teacher, with Newcombe's interval. teacher_adjusted, student_adjusted: shares corrected for what the probe confuses.
    examples: numbers of the student's images that are most certainly of this value.
    """

    value: str
    recall: float
    teacher: float
    teacher_low: float
    teacher_high: float
    student: float
    student_low: float
    student_high: float
    difference: float
    low: float
    high: float
    teacher_adjusted: float
    student_adjusted: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class AttributeBias:
    """Values by the size of the change.

    total_variation: half the sum of the absolute differences, in [0, 1]; p_value: its permutation test. accuracy: the
    probe's on the images that `tested_on` names. certainty: mean probability of the likeliest value, (teacher, student);
    far below the accuracy it says that sampled images are not what the probe knows. changed: numbers of pairs whose value
    differs between teacher and student, the surest first.
    """

    attribute: str
    accuracy: float
    tested_on: str
    teacher_count: int
    student_count: int
    values: tuple[ValueFraction, ...]
    total_variation: float
    p_value: float
    certainty: tuple[float, float]
    changed: tuple[int, ...]
    level: float

    def describe(self) -> str:
        """The finding in two sentences."""
        most = self.values[0]
        differ = "differ" if self.p_value <= 1 - self.level else "do not differ"
        return (
            f"{self.attribute}: the student's shares {differ} from the teacher's beyond chance "
            f"(total variation {self.total_variation:.1%}, p = {self.p_value:.2g}), read by a probe that is right on "
            f"{self.accuracy:.1%} of {self.tested_on}. The largest change is {most.value}, from {most.teacher:.1%} to "
            f"{most.student:.1%} ({self.level:.0%} interval of the difference {most.low:+.1%} to {most.high:+.1%})."
        )


def attribute_bias(
    probe: LinearProbe, teacher: Features, student: Features, *, permutations: int = 4999, seed: int = 0
) -> AttributeBias:
    """Shares of the probe's values among images of the same neutral prompts and seeds, from features (N, D) twice.

    Raises:
        ValueError: features of another width than the probe's, none, or of other numbers.
    """
    for name, f in (("teacher", teacher), ("student", student)):
        if f.ndim != 2 or len(f) == 0 or f.shape[1] != len(probe.mean):
            raise ValueError(f"{name}: got features {tuple(f.shape)}, expects (N, {len(probe.mean)}).")
    if len(teacher) != len(student):
        raise ValueError(f"student: got {len(student)} images for {len(teacher)} of the teacher, expects one for each.")
    of_a, of_b = probe.probabilities(teacher), probe.probabilities(student)
    a, b = of_a.argmax(axis=1), of_b.argmax(axis=1)
    count = len(probe.values)
    share_a, share_b = np.bincount(a, minlength=count) / len(a), np.bincount(b, minlength=count) / len(b)
    adjusted_a, adjusted_b = adjusted_fractions(share_a, probe.confusion), adjusted_fractions(share_b, probe.confusion)
    values = []
    for k in np.argsort(-np.abs(share_b - share_a), kind="stable").tolist():
        interval_a, interval_b = (wilson_interval(int((of == k).sum()), len(of)) for of in (a, b))
        low, high = newcombe_interval(float(share_a[k]), interval_a, float(share_b[k]), interval_b)
        examples = np.flatnonzero(b == k)
        values.append(
            ValueFraction(
                value=probe.values[k],
                recall=float(probe.confusion[k, k]),
                teacher=float(share_a[k]),
                teacher_low=interval_a[0],
                teacher_high=interval_a[1],
                student=float(share_b[k]),
                student_low=interval_b[0],
                student_high=interval_b[1],
                difference=float(share_b[k] - share_a[k]),
                low=low,
                high=high,
                teacher_adjusted=float(adjusted_a[k]),
                student_adjusted=float(adjusted_b[k]),
                examples=tuple(examples[np.argsort(-of_b[examples, k], kind="stable")][:SHOWN].tolist()),
            )
        )
    sure_a, sure_b = of_a.max(axis=1), of_b.max(axis=1)
    changed = np.flatnonzero(a != b)
    changed = changed[np.argsort(-(sure_a[changed] * sure_b[changed]), kind="stable")][:SHOWN]
    return AttributeBias(
        attribute=probe.attribute,
        accuracy=probe.accuracy,
        tested_on=probe.tested_on,
        teacher_count=len(a),
        student_count=len(b),
        values=tuple(values),
        total_variation=float(np.abs(share_b - share_a).sum() / 2),
        p_value=_swap_p(a, b, count, permutations, seed),
        certainty=(float(sure_a.mean()), float(sure_b.mean())),
        changed=tuple(changed.tolist()),
        level=LEVEL,
    )


def adjusted_fractions(shares: NDArray[np.float64], confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares (K,) whose confusion (K, K) would give `shares`: nearest by least squares, at least 0, of sum 1.

    (Adjusted classify and count, Forman 2008, for several values.) Noisier than `shares` where the probe confuses much.
    """
    heavy = 1e3  # the row that makes the sum 1
    solution, _ = optimize.nnls(np.vstack([confusion.T, np.full(len(shares), heavy)]), np.append(shares, heavy))
    return solution / solution.sum()


def newcombe_interval(
    a: float, interval_a: tuple[float, float], b: float, interval_b: tuple[float, float]
) -> tuple[float, float]:
    """Interval of b - a for two proportions, from their Wilson intervals (Newcombe 1998, method 10).

    It takes the two as independent, and is wider than need be where they are pairs that go together.
    """
    below = ((b - interval_b[0]) ** 2 + (interval_a[1] - a) ** 2) ** 0.5
    above = ((interval_b[1] - b) ** 2 + (a - interval_a[0]) ** 2) ** 0.5
    return b - a - below, b - a + above


def _swap_p(a: NDArray[np.int64], b: NDArray[np.int64], count: int, permutations: int, seed: int) -> float:
    """The share of random swaps within the pairs with a total variation as large."""
    # Only the net moves between values matter: each pair adds +1 to one and -1 to another, or the reverse.
    one_hot = np.eye(count, dtype=np.float32)
    moves = one_hot[b[a != b]] - one_hot[a[a != b]]
    signs = np.random.default_rng(seed).integers(0, 2, (permutations, len(moves)), dtype=np.int8).astype(np.float32) * 2 - 1
    null, seen = np.abs(signs @ moves).sum(axis=1), np.abs(moves.sum(axis=0)).sum()
    return float((1 + (null >= seen - 1e-9).sum()) / (1 + permutations))
