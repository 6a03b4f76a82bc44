"""Regressions by concept: coverage and scores of each class or prompt group, student against teacher.

Every group is a separate test, and of a hundred equal groups about five appear to differ by chance. So each difference
has an interval and a p-value, and the p-values are corrected for their number (Benjamini & Hochberg 1995): among the groups
that are reported as worse, at most the fraction `FALSE_DISCOVERY_RATE` is expected to be false.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse, stats

from gendistill.metrics.distances.uncertainty import LEVEL

Floats = NDArray[np.floating]
ELEMENTS_AT_ONCE = 2**22
FALSE_DISCOVERY_RATE = 0.05
SHOWN = 8  # maximum number of examples per result
MIN_DIFFERENCES = 6  # for a test


@dataclass(frozen=True)
class GroupChange:
    """The mean of one group for teacher and student.

    Attributes:
        low, high: confidence interval of the difference; None for a group of one image.
        p_value: two-sided; None for a group that is too small for a test.
        q_value: the p-value corrected for the number of groups; None as for `p_value`.
        worst: numbers of the images with the largest loss, the largest first.
    """

    group: str
    count: int
    teacher: float
    student: float
    difference: float  # student - teacher
    low: float | None
    high: float | None
    p_value: float | None
    q_value: float | None
    worst: tuple[int, ...]


@dataclass(frozen=True)
class GroupComparison:
    """All groups, sorted by the upper end of the interval (the surest losses first), and all images as one group."""

    measure: str
    overall: GroupChange
    groups: tuple[GroupChange, ...]
    worse: tuple[str, ...]  # names of the groups that are significantly worse, corrected for the number of groups
    level: float
    false_discovery_rate: float

    def describe(self) -> str:
        """The comparison in two sentences."""
        o = self.overall
        interval = f" ({self.level:.0%} interval {o.low:+.3g} to {o.high:+.3g})" if o.low is not None else ""
        first = f"{self.measure}: teacher {o.teacher:.3g}, student {o.student:.3g}, difference {o.difference:+.3g}{interval}."
        if not self.worse:
            return f"{first} None of {len(self.groups)} groups is significantly worse."
        named = [g for g in self.groups if g.group in self.worse][:3]
        worst = ", ".join(f"{g.group} ({g.teacher:.3g} to {g.student:.3g})" for g in named)
        return f"{first} Significantly worse: {len(self.worse)} of {len(self.groups)} groups, above all {worst}."


def covering(reference: torch.Tensor | Floats, generated: torch.Tensor | Floats, k: int = 5) -> sparse.csr_array:
    """Which generated image covers which reference image: sparse bool (M, N), from features (M, D) and (N, D).

    A generated image covers a reference image if their distance is at most that from the reference image to its k-th nearest
    other reference image (Naeem et al. 2020). A reference image is covered if its row has a True; the coverage is the
    fraction of covered reference images.

    Raises:
        ValueError: D differs, or M is at most k.
    """
    real, fake = torch.as_tensor(reference).float(), torch.as_tensor(generated).float()
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features: got {tuple(real.shape)} and {tuple(fake.shape)}, expects (M, D) and (N, D).")
    if len(real) <= k:
        raise ValueError(f"reference: got {len(real)} images, expects more than k = {k}.")
    rows = max(1, ELEMENTS_AT_ONCE // max(len(real), len(fake)))
    blocks = []
    for start in range(0, len(real), rows):
        block = real[start : start + rows]
        radius = torch.cdist(block, real).kthvalue(k + 1, dim=1).values  # the first is the image itself
        blocks.append(sparse.csr_array((torch.cdist(block, fake) <= radius[:, None]).numpy()))
    return sparse.csr_array(sparse.vstack(blocks))


def coverage_by_group(
    teacher: sparse.sparray | NDArray[np.bool_],
    student: sparse.sparray | NDArray[np.bool_],
    groups: Sequence[str],
    *,
    permutations: int = 4999,
    seed: int = 0,
) -> GroupComparison:
    """Coverage of each group of reference images by the teacher's and the student's images of the same N prompts and seeds.

    Reference images are not independent units: one generated image covers several neighbours, so that McNemar's test on
    covered-or-not rejects a fifth of equal groups. Here the generated pairs are the units. If student and teacher have the
    same distribution, swapping the two images of any pair changes nothing; the p-value is the fraction of random swaps with
    a difference as large, and the interval is the difference plus and minus the standard deviation under swaps times the
    normal quantile (an inverted test, with the spread under the null hypothesis: on Gaussian mixtures, 95 % intervals of
    single groups contained the true difference in 88 to 96 of 100 samples).

    Args:
        teacher, student: bool (M, N), the results of `covering`.
        groups: the group of each reference image, M names. `worst` are numbers of reference images that the teacher's images
            cover and the student's do not.

    Raises:
        ValueError: the shapes differ, or there are not M names.
    """
    a, b = sparse.csr_array(teacher, dtype=np.float32), sparse.csr_array(student, dtype=np.float32)
    if np.ndim(teacher) != 2 or a.shape != b.shape:
        raise ValueError(f"teacher, student: got {np.shape(teacher)} and {np.shape(student)}, expects (M, N) twice.")
    names, member = _members(groups, a.shape[0])
    count = member.sum(axis=1)
    with_all = sparse.csr_array(sparse.vstack([member, np.ones((1, a.shape[0]), dtype=np.float32)]))
    counts = np.append(count, a.shape[0])

    by_a, by_b = a.sum(axis=1), b.sum(axis=1)
    coverage_a, coverage_b = with_all @ (by_a > 0) / counts, with_all @ (by_b > 0) / counts
    null = _swapped(a, b, with_all, permutations, seed) / counts
    p = (1 + (np.abs(null) >= np.abs(coverage_b - coverage_a) - 1e-9).sum(axis=0)) / (1 + permutations)
    q = stats.false_discovery_control(p[:-1]) if len(names) else p[:-1]
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(np.square(null).mean(axis=0))
    lost = np.where((by_a > 0) & (by_b == 0), by_a, 0)
    changes = []
    for i, name in enumerate([*names, "all"]):
        rows = with_all[[i]].indices
        worst = rows[np.argsort(-lost[rows], kind="stable")][: min(SHOWN, int((lost[rows] > 0).sum()))]
        difference = float(coverage_b[i] - coverage_a[i])
        low, high = max(difference - half[i], -1.0), min(difference + half[i], 1.0)
        numbers = (float(coverage_a[i]), float(coverage_b[i]), difference, float(low), float(high), float(p[i]))
        corrected = float(q[i] if i < len(names) else p[i])
        changes.append(GroupChange(name, int(counts[i]), *numbers, corrected, tuple(worst.tolist())))
    return _comparison("coverage", changes)


def scores_by_group(
    teacher: Floats | torch.Tensor,
    student: Floats | torch.Tensor,
    groups: Sequence[str],
    *,
    measure: str = "CLIP score",
    permutations: int = 9999,
    seed: int = 0,
) -> GroupComparison:
    """Mean score of each prompt group for teacher and student on the same prompts and seeds; higher is better.

    The interval is Student's t over the paired differences, the p-value that of a sign-flip permutation test (exact in small
    groups). A group with fewer than `MIN_DIFFERENCES` images, where no result could be significant, is listed without a test.

    Args:
        teacher, student: scores (N,), finite.
        groups: the group of each image, N names. `worst` are numbers of the student's images with the largest loss against
            the teacher's, the largest first.

    Raises:
        ValueError: the lengths differ, or a score is not finite.
    """
    a, b = np.asarray(teacher, dtype=np.float64), np.asarray(student, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"teacher, student: got scores {a.shape} and {b.shape}, expects (N,) twice.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("teacher, student: got NaN or infinity, expects finite scores.")
    names, member = _members(groups, len(a))
    rows_by_group = [member[[i]].indices for i in range(len(names))] + [np.arange(len(a))]
    p = [sign_flip_p(b[rows] - a[rows], permutations, seed) if len(rows) >= MIN_DIFFERENCES else None for rows in rows_by_group]
    tested = [value for value in p[:-1] if value is not None]
    corrected = iter(stats.false_discovery_control(tested) if tested else [])
    changes = []
    for name, rows, p_value in zip([*names, "all"], rows_by_group, p, strict=True):
        difference = b[rows] - a[rows]
        low, high = t_interval(difference) if len(rows) > 1 else (None, None)
        worst = rows[np.argsort(difference, kind="stable")][: min(SHOWN, int((difference < 0).sum()))]
        q_value = (
            p_value if name == "all" and rows is rows_by_group[-1] else None if p_value is None else float(next(corrected))
        )
        means = (float(a[rows].mean()), float(b[rows].mean()), float(difference.mean()))
        changes.append(GroupChange(name, len(rows), *means, low, high, p_value, q_value, tuple(worst.tolist())))
    return _comparison(measure, changes)


def sign_flip_p(differences: NDArray[np.float64], permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of mean 0 for paired differences (N,): the fraction of sign flips with a mean as far from 0.

    It is exact if 2^N is at most `permutations` (Fisher 1935, section 21).
    """
    if not differences.any():
        return 1.0
    at_once = max(1, ELEMENTS_AT_ONCE // len(differences))
    outcome = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=at_once,
        random_state=np.random.default_rng(seed),
    )
    return float(outcome.pvalue)


def t_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Student's t interval of the mean of `differences` (N,), N >= 2."""
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * error
    return float(differences.mean()) - half, float(differences.mean()) + half


def _members(groups: Sequence[str], count: int) -> tuple[list[str], sparse.csr_array]:
    """Sorted names of the G groups, and their members float32 (G, count): 1 if the image belongs to the group."""
    if len(groups) != count:
        raise ValueError(f"groups: got {len(groups)} names for {count} images, expects one per image.")
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    ones = np.ones(count, dtype=np.float32)
    return names.tolist(), sparse.csr_array((ones, (number, np.arange(count))), shape=(len(names), count))


def _swapped(
    a: sparse.csr_array, b: sparse.csr_array, member: sparse.csr_array, permutations: int, seed: int
) -> NDArray[np.float64]:
    """Differences (P, G) of the number of covered images in each group, for P random swaps within the pairs."""
    generator = np.random.default_rng(seed)
    at_once = max(1, ELEMENTS_AT_ONCE // max(a.shape))
    differences = []
    for start in range(0, permutations, at_once):
        kept = generator.integers(0, 2, (a.shape[1], min(at_once, permutations - start))).astype(np.float32)
        covered_a = (a @ kept + b @ (1 - kept)) > 0
        covered_b = (a @ (1 - kept) + b @ kept) > 0
        differences.append(member @ (covered_b.astype(np.float32) - covered_a.astype(np.float32)))
    return np.concatenate(differences, axis=1).T.astype(np.float64)


def _comparison(measure: str, changes: list[GroupChange]) -> GroupComparison:
    """The comparison of `changes`, the last of which is that of all images."""
    ranked = sorted(changes[:-1], key=lambda g: (g.q_value is None, g.high if g.high is not None else np.inf, g.difference))
    worse = tuple(g.group for g in ranked if g.q_value is not None and g.q_value <= FALSE_DISCOVERY_RATE and g.difference < 0)
    return GroupComparison(measure, changes[-1], tuple(ranked), worse, LEVEL, FALSE_DISCOVERY_RATE)
