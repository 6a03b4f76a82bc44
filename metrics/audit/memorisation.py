"""Whether a model repeats training images: nearest neighbours of its images among them, in feature space.

No distance tells a copy from an image that is merely as the training images are. So a sampled image's distance to
its nearest training image is set against two yardsticks: that one's distance to its own nearest other training
image, and the distances of held-out images of the same distribution.
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
FEWEST = 20  # distances that C_T is told from


@dataclass(frozen=True)
class SuspiciousPair:
    """A sampled image and the training image nearest to it.

    ratio: their distance over that of the training image to its nearest other; 0 is a copy, about 1 what a fresh image has.
    """

    generated: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Nearness:
    """How near one model's images are to the training images.

    near_fraction: in [0, 1], of its images nearer to a training image than that is to any other (1 - authenticity,
    Alaa et al. 2022); low, high: its Wilson interval. c_t: Meehan et al. 2020, below; None without held-out
    images. pairs: the smallest ratios first.
    """

    near_fraction: float
    low: float
    high: float
    median_distance: float
    c_t: float | None
    pairs: tuple[SuspiciousPair, ...]


@dataclass(frozen=True)
class Memorisation:
    """Teacher, student, and the near_fraction of held-out images (None without), which is what no copying gives.

    p_value: one-sided Mann-Whitney, that the student's images are no nearer to the training images than the teacher's.
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
        scores = f" C_T: teacher {t.c_t:+.1f}, student {s.c_t:+.1f} (below -3 copies)." if known else ""
        nearer = "is" if self.p_value < 0.05 else "is not"
        closest = s.pairs[0]
        return (
            f"Nearer to a training image than that is to any other: teacher {t.near_fraction:.1%}, student {s.near_fraction:.1%} "
            f"({s.low:.1%} to {s.high:.1%}){held_out}.{scores} The student {nearer} nearer than the teacher beyond chance "
            f"(p = {self.p_value:.2g}); its most suspicious image is {closest.generated}, beside training image "
            f"{closest.training} (ratio {closest.ratio:.2f})."
        )


def memorisation(
    training: Features,
    teacher: Features,
    student: Features,
    held_out: Features | None = None,
) -> Memorisation:
    """From features (M, D) of the training images, (N, D) and (L, D) of sampled and (H, D) of held-out ones.

    Args:
        held_out: of the same distribution as the training images and not among them. Held-out images of kinds that
            training lacks lie farther away than any fresh image, and make an honest model look like a copier.

    Raises:
        ValueError: widths differ, a set is empty, or there are fewer than 2 training images.
    """
    sets = [torch.as_tensor(f).float() for f in (training, teacher, student, *([] if held_out is None else [held_out]))]
    shapes = [tuple(f.shape) for f in sets]
    if any(len(s) != 2 or s[0] == 0 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"features: got shapes {shapes} of training, teacher, student, held_out; expects (N, D) with one D.")
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
    """Euclidean distance of each row of `a` (N, D) to the nearest of `b` (M, D), and its number; both (N,).

    `skip_self`: `a` is `b`, and row k is not held against itself. Memory is flat in N: 4 million distances at once.
    """
    x, y = torch.as_tensor(a).float(), torch.as_tensor(b).float()
    # Distances by dot products are quick and lack digits near 0: they choose four candidates, told apart exactly.
    few = min(4, len(y) - skip_self)
    centre = y.mean(dim=0)
    rows = max(1, ELEMENTS_AT_ONCE // max(len(y), few * y.shape[1]))
    distances, numbers = [], []
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        rough = torch.cdist(block - centre, y - centre, compute_mode="use_mm_for_euclid_dist")
        if skip_self:
            here = torch.arange(len(block))
            rough[here, start + here] = torch.inf
        candidates = rough.topk(few, dim=1, largest=False).indices
        found = torch.linalg.vector_norm(block[:, None] - y[candidates], dim=2).min(dim=1)
        distances.append(found.values)
        numbers.append(candidates.gather(1, found.indices[:, None])[:, 0])
    return torch.cat(distances).numpy(), torch.cat(numbers).numpy()


def copying_statistic(generated: NDArray[np.floating], held_out: NDArray[np.floating]) -> float | None:
    """C_T of distances to the nearest training image, (N,) and (H,): below 0 copying, above 0 underfitting.

    The Mann-Whitney statistic U, the number of pairs in which the sampled image is farther than the held-out one,
    standardised: (U - nm / 2) / sqrt(nm (n + m + 1) / 12) (Meehan, Chaudhuri & Dasgupta 2020, in one cell). Beyond 3 either
    way is beyond chance. None with fewer than `FEWEST` images of each.
    """
    n, m = len(generated), len(held_out)
    if min(n, m) < FEWEST:
        return None
    u = float(stats.mannwhitneyu(generated, held_out).statistic)
    return float((u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5)


def _nearness(
    distance: NDArray[np.float32], number: NDArray[np.int64], own: NDArray[np.float32], c_t: float | None
) -> Nearness:
    # A copy of a training image that is there twice has 0 on both sides: a copy all the same.
    near = distance <= own[number]
    ratio = np.where(distance > 0, distance / np.maximum(own[number], 1e-12), 0)
    low, high = wilson_interval(int(near.sum()), len(near))
    first = np.lexsort((distance, ratio))[:SHOWN].tolist()
    pairs = tuple(SuspiciousPair(k, int(number[k]), float(distance[k]), float(ratio[k])) for k in first)
    median = float(np.median(distance))
    return Nearness(float(near.mean()), low, high, median, c_t, pairs)
