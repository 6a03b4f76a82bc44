"""Whether a model memorised training images: nearest training images of its images, in feature space.

A distance alone does not distinguish a copy from another image of the training distribution. So the distance from a generated
image to its nearest training image is compared with two others: the distance from that training image to its nearest other
training image, and the distances of held-out images of the same distribution.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from gendistill.metrics.audit.groups import SHOWN
from gendistill.metrics.distances.uncertainty import wilson_interval
from gendistill.metrics.features.matrix import Features

ELEMENTS_AT_ONCE = 2**22
MIN_DISTANCES = 20  # for C_T


@dataclass(frozen=True)
class SuspiciousPair:
    """A generated image and the training image nearest to it.

    Attributes:
        generated, training: numbers of the two images.
        ratio: `distance` over the distance from the training image to its nearest other; 0 for a copy, about 1 for a new
            image.
    """

    generated: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Nearness:
    """Distances of one model's images from the training images.

    Attributes:
        near_fraction: fraction of the model's images that are nearer to their nearest training image than any other
            training image is (1 - authenticity, Alaa et al. 2022); low, high: its Wilson interval.
        c_t: see `copying_statistic`; None without held-out images.
        pairs: the most suspicious pairs, the smallest ratio first.
    """

    near_fraction: float
    low: float
    high: float
    median_distance: float
    c_t: float | None
    pairs: tuple[SuspiciousPair, ...]


@dataclass(frozen=True)
class Memorisation:
    """Teacher and student, and for comparison the near_fraction of held-out images, None without these.

    p_value: one-sided Mann-Whitney test of the hypothesis that the student's images are no nearer to the training images
    than the teacher's.
    """

    teacher: Nearness
    student: Nearness
    held_out_near_fraction: float | None
    p_value: float

    def describe(self) -> str:
        """The finding in two sentences."""
        t, s = self.teacher, self.student
        held_out = "" if self.held_out_near_fraction is None else f", held-out images {self.held_out_near_fraction:.1%}"
        known = t.c_t is not None and s.c_t is not None
        scores = f" C_T: teacher {t.c_t:+.1f}, student {s.c_t:+.1f} (below -3: copies)." if known else ""
        nearer = "is" if self.p_value < 0.05 else "is not"
        closest = s.pairs[0]
        return (
            f"Images nearer to a training image than any other training image is: teacher {t.near_fraction:.1%}, "
            f"student {s.near_fraction:.1%} ({s.low:.1%} to {s.high:.1%}){held_out}.{scores} The student {nearer} "
            f"significantly nearer than the teacher (p = {self.p_value:.2g}); its most suspicious image is "
            f"{closest.generated}, next to training image {closest.training} (ratio {closest.ratio:.2f})."
        )


def memorisation(
    training: Features,
    teacher: Features,
    student: Features,
    held_out: Features | None = None,
) -> Memorisation:
    """Compare the features of training (M, D), the teacher's (N, D), the student's (L, D) and held-out images (H, D).

    Args:
        held_out: images of the same distribution as the training images and not among them. Held-out images of another
            distribution lie farther away than new images of the training distribution, so that a model without copies is
            reported as copying.

    Raises:
        ValueError: D differs, a set is empty, or there are fewer than 2 training images.
    """
    sets = [torch.as_tensor(f).float() for f in (training, teacher, student, *([] if held_out is None else [held_out]))]
    shapes = [tuple(f.shape) for f in sets]
    if any(len(s) != 2 or s[0] == 0 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"features: got shapes {shapes} of training, teacher, student, held_out; expects (N, D) with equal D.")
    if len(sets[0]) < 2:
        raise ValueError("training: got 1 image, expects at least 2.")
    train = sets[0]
    own, _ = nearest(train, train, skip_self=True)
    near = [nearest(f, train) for f in sets[1:]]
    scores: list[float | None] = [None, None]
    if held_out is not None:
        scores = [copying_statistic(near[i][0], near[2][0]) for i in range(2)]
    return Memorisation(
        teacher=_nearness(*near[0], own, scores[0]),
        student=_nearness(*near[1], own, scores[1]),
        held_out_near_fraction=None if held_out is None else float((near[2][0] <= own[near[2][1]]).mean()),
        p_value=float(stats.mannwhitneyu(near[1][0], near[0][0], alternative="less").pvalue),
    )


def nearest(a: Features, b: Features, *, skip_self: bool = False) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Euclidean distance of each row of `a` (N, D) to the nearest row of `b` (M, D), and the number of that row; both (N,).

    `skip_self`: `a` is `b`, and row k is not compared with itself. Memory does not grow with N: 4 million distances at once.
    """
    x, y = torch.as_tensor(a).float(), torch.as_tensor(b).float()
    # Distances by dot products are fast but inexact near 0: they choose four candidates, whose distances are then exact.
    count = min(4, len(y) - skip_self)
    centre = y.mean(dim=0)
    rows = max(1, ELEMENTS_AT_ONCE // max(len(y), count * y.shape[1]))
    distances, numbers = [], []
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        rough = torch.cdist(block - centre, y - centre, compute_mode="use_mm_for_euclid_dist")
        if skip_self:
            diagonal = torch.arange(len(block))
            rough[diagonal, start + diagonal] = torch.inf
        candidates = rough.topk(count, dim=1, largest=False).indices
        exact = torch.linalg.vector_norm(block[:, None] - y[candidates], dim=2).min(dim=1)
        distances.append(exact.values)
        numbers.append(candidates.gather(1, exact.indices[:, None])[:, 0])
    return torch.cat(distances).numpy(), torch.cat(numbers).numpy()


def copying_statistic(generated: NDArray[np.floating], held_out: NDArray[np.floating]) -> float | None:
    """C_T from distances to the nearest training image, (N,) and (H,): below 0 copying, above 0 underfitting.

    It is the Mann-Whitney statistic U, the number of pairs in which the generated image is farther than the held-out one,
    standardised: (U - nm / 2) / sqrt(nm (n + m + 1) / 12) (Meehan, Chaudhuri & Dasgupta 2020, with one cell). An absolute
    value above 3 is significant. None with fewer than `MIN_DISTANCES` images of either.
    """
    n, m = len(generated), len(held_out)
    if min(n, m) < MIN_DISTANCES:
        return None
    u = float(stats.mannwhitneyu(generated, held_out).statistic)
    return float((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)


def _nearness(
    distance: NDArray[np.float32], number: NDArray[np.int64], own: NDArray[np.float32], c_t: float | None
) -> Nearness:
    # A copy of a training image that occurs twice has distance 0 on both sides, and counts as near.
    near = distance <= own[number]
    ratio = np.where(distance > 0, distance / np.maximum(own[number], 1e-12), 0)
    low, high = wilson_interval(int(near.sum()), len(near))
    first = np.lexsort((distance, ratio))[:SHOWN].tolist()
    pairs = tuple(SuspiciousPair(k, int(number[k]), float(distance[k]), float(ratio[k])) for k in first)
    median = float(np.median(distance))
    return Nearness(float(near.mean()), low, high, median, c_t, pairs)
