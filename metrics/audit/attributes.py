"""Attribute bias: the fraction of each value of an attribute among images whose prompts do not name the attribute.

A probe that was fitted to real images whose captions name the value predicts the value of generated images. The probe makes
errors, so every fraction is reported together with its accuracy on held-out images.
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
    """One value of the attribute: its fraction of the teacher's and of the student's images, with Wilson intervals.

    Attributes:
        recall: the probe's recall of this value on its test images.
        difference: student - teacher; low, high: Newcombe's interval.
        teacher_adjusted, student_adjusted: fractions corrected for the probe's confusion.
        examples: numbers of the student's images with this value, the highest probability first.
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
    """The values of an attribute, the largest change first.

    Attributes:
        accuracy: the probe's accuracy on the images that `tested_on` names.
        total_variation: half the sum of the absolute differences, in [0, 1].
        p_value: its permutation test.
        certainty: mean probability of the likeliest value, (teacher, student); if it is far below the accuracy, the
            generated images are unlike the images that the probe was fitted to.
        changed: numbers of pairs whose value differs between teacher and student, the highest probabilities first.
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
        largest = self.values[0]
        differ = "differ" if self.p_value <= 1 - self.level else "do not differ"
        return (
            f"{self.attribute}: the student's fractions {differ} significantly from the teacher's "
            f"(total variation {self.total_variation:.1%}, p = {self.p_value:.2g}), predicted by a probe with accuracy "
            f"{self.accuracy:.1%} on {self.tested_on}. The largest change is {largest.value}, from {largest.teacher:.1%} to "
            f"{largest.student:.1%} ({self.level:.0%} interval of the difference {largest.low:+.1%} to {largest.high:+.1%})."
        )


def attribute_bias(
    probe: LinearProbe, teacher: Features, student: Features, *, permutations: int = 4999, seed: int = 0
) -> AttributeBias:
    """Fractions of the probe's values among the teacher's and the student's images of the same neutral prompts and seeds.

    `teacher`, `student`: features (N, D).

    Raises:
        ValueError: the features have another D than the probe, N is 0, or N differs.
    """
    for name, f in (("teacher", teacher), ("student", student)):
        if f.ndim != 2 or len(f) == 0 or f.shape[1] != len(probe.mean):
            raise ValueError(f"{name}: got features {tuple(f.shape)}, expects (N, {len(probe.mean)}).")
    if len(teacher) != len(student):
        raise ValueError(f"student: got {len(student)} images for {len(teacher)} of the teacher, expects equal numbers.")
    probabilities_a, probabilities_b = probe.probabilities(teacher), probe.probabilities(student)
    a, b = probabilities_a.argmax(axis=1), probabilities_b.argmax(axis=1)
    count = len(probe.values)
    fraction_a, fraction_b = np.bincount(a, minlength=count) / len(a), np.bincount(b, minlength=count) / len(b)
    adjusted_a, adjusted_b = adjusted_fractions(fraction_a, probe.confusion), adjusted_fractions(fraction_b, probe.confusion)
    values = []
    for k in np.argsort(-np.abs(fraction_b - fraction_a), kind="stable").tolist():
        interval_a, interval_b = (wilson_interval(int((predicted == k).sum()), len(predicted)) for predicted in (a, b))
        low, high = newcombe_interval(float(fraction_a[k]), interval_a, float(fraction_b[k]), interval_b)
        examples = np.flatnonzero(b == k)
        values.append(
            ValueFraction(
                value=probe.values[k],
                recall=float(probe.confusion[k, k]),
                teacher=float(fraction_a[k]),
                teacher_low=interval_a[0],
                teacher_high=interval_a[1],
                student=float(fraction_b[k]),
                student_low=interval_b[0],
                student_high=interval_b[1],
                difference=float(fraction_b[k] - fraction_a[k]),
                low=low,
                high=high,
                teacher_adjusted=float(adjusted_a[k]),
                student_adjusted=float(adjusted_b[k]),
                examples=tuple(examples[np.argsort(-probabilities_b[examples, k], kind="stable")][:SHOWN].tolist()),
            )
        )
    sure_a, sure_b = probabilities_a.max(axis=1), probabilities_b.max(axis=1)
    changed = np.flatnonzero(a != b)
    changed = changed[np.argsort(-(sure_a[changed] * sure_b[changed]), kind="stable")][:SHOWN]
    return AttributeBias(
        attribute=probe.attribute,
        accuracy=probe.accuracy,
        tested_on=probe.tested_on,
        teacher_count=len(a),
        student_count=len(b),
        values=tuple(values),
        total_variation=float(np.abs(fraction_b - fraction_a).sum() / 2),
        p_value=_swap_p(a, b, count, permutations, seed),
        certainty=(float(sure_a.mean()), float(sure_b.mean())),
        changed=tuple(changed.tolist()),
        level=LEVEL,
    )


def adjusted_fractions(fractions: NDArray[np.float64], confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """True fractions (K,) from predicted `fractions` (K,) and the confusion (K, K): nonnegative least squares, of sum 1.

    This is adjusted classify and count (Forman 2008) for several values. The result is noisier than `fractions` if the probe
    confuses values often.
    """
    heavy = 1e3  # weight of the equation that makes the sum 1
    solution, _ = optimize.nnls(np.vstack([confusion.T, np.full(len(fractions), heavy)]), np.append(fractions, heavy))
    return solution / solution.sum()


def newcombe_interval(
    a: float, interval_a: tuple[float, float], b: float, interval_b: tuple[float, float]
) -> tuple[float, float]:
    """Interval of b - a for two proportions, from their Wilson intervals (Newcombe 1998, method 10).

    It treats the two as independent, and is therefore wider than necessary for correlated pairs.
    """
    below = ((b - interval_b[0]) ** 2 + (interval_a[1] - a) ** 2) ** 0.5
    above = ((interval_b[1] - b) ** 2 + (a - interval_a[0]) ** 2) ** 0.5
    return b - a - below, b - a + above


def _swap_p(a: NDArray[np.int64], b: NDArray[np.int64], count: int, permutations: int, seed: int) -> float:
    """p-value of the total variation: the fraction of random swaps within the pairs with one as large."""
    # Only pairs whose values differ matter: each adds +1 to one value and -1 to another, or the reverse.
    one_hot = np.eye(count, dtype=np.float32)
    moves = one_hot[b[a != b]] - one_hot[a[a != b]]
    signs = np.random.default_rng(seed).integers(0, 2, (permutations, len(moves)), dtype=np.int8).astype(np.float32) * 2 - 1
    null, observed = np.abs(signs @ moves).sum(axis=1), np.abs(moves.sum(axis=0)).sum()
    return float((1 + (null >= observed - 1e-9).sum()) / (1 + permutations))
