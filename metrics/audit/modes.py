"""Which modes a student lost: the fraction of its images in each bin of the reference's features.

The bins are k-means cells of the reference images (NDB, Richardson & Weiss 2018). A model that lacks a kind of image has too
few images in the bins of that kind, which hardly changes the distance between two Gaussians.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import jensenshannon

from gendistill.metrics.audit.groups import SHOWN
from gendistill.metrics.features.matrix import Features


@dataclass(frozen=True)
class Bin:
    """One bin: the fractions of the reference's, the teacher's and the student's images in it.

    Attributes:
        p_value: one-sided test of the hypothesis that the student's fraction is no smaller than the teacher's.
        q_value: the p-value corrected for the number of bins (Benjamini & Hochberg 1995).
        examples: numbers of reference images in the bin, the nearest to its centre first.
        teacher_examples: numbers of the teacher's images in the bin, in the same order.
    """

    number: int
    reference: float
    teacher: float
    student: float
    p_value: float
    q_value: float
    examples: tuple[int, ...]
    teacher_examples: tuple[int, ...]


@dataclass(frozen=True)
class ModeLoss:
    """Bins sorted by the student's loss, the largest first.

    Attributes:
        lost: numbers of the bins where the student's fraction is significantly smaller than the teacher's, corrected for
            the number of bins.
        teacher_ndb, student_ndb: fraction of the bins that differ significantly from the reference (two-proportion z-test
            at 5 %, not corrected, as in the paper: 0.05 is expected by chance).
        teacher_divergence, student_divergence: Jensen-Shannon divergence of the bins' fractions from the reference's, in
            nats, [0, ln 2].
    """

    bins: tuple[Bin, ...]
    lost: tuple[int, ...]
    teacher_ndb: float
    student_ndb: float
    teacher_divergence: float
    student_divergence: float
    false_discovery_rate: float

    def describe(self) -> str:
        """The loss in two sentences."""
        first = (
            f"Bins that differ from the reference: teacher {self.teacher_ndb:.0%}, student {self.student_ndb:.0%} "
            f"of {len(self.bins)}; Jensen-Shannon divergence {self.teacher_divergence:.3f} and {self.student_divergence:.3f}."
        )
        if not self.lost:
            return f"{first} The student lost no mode of the teacher significantly."
        lost = [b for b in self.bins if b.number in self.lost]
        before, after = sum(b.teacher for b in lost), sum(b.student for b in lost)
        return (
            f"{first} The student has too few images in {len(lost)} bins, which hold {before:.1%} of the teacher's images "
            f"and {after:.1%} of the student's; {sum(b.student == 0 for b in lost)} are empty."
        )


def mode_loss(
    reference: Features,
    teacher: Features,
    student: Features,
    *,
    bins: int = 50,
    false_discovery_rate: float = 0.05,
    seed: int = 0,
) -> ModeLoss:
    """Bins where the student has too few images, from features (M, D), (N, D) and (N, D); same prompts and seeds.

    Only the pairs of images that lie in different bins count (McNemar's exact test).

    Args:
        bins: number of bins. With fewer, a loss in each is more certain; with more, smaller modes are found. A bin that is
            lost completely is found if N / bins is 20 or more.

    Raises:
        ValueError: D differs, a set is empty, the teacher's and the student's N differ, or there are more bins than reference
            images.
    """
    shapes = [tuple(f.shape) for f in (reference, teacher, student)]
    if any(len(s) != 2 or s[0] == 0 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"reference, teacher, student: got shapes {shapes}, expects (M, D), (N, D) and (N, D).")
    if shapes[1] != shapes[2]:
        raise ValueError(f"student: got {shapes[2][0]} images for {shapes[1][0]} of the teacher, expects equal numbers.")
    centres = fit_bins(reference, bins, seed)
    reference_cells, reference_distances = cells_of(reference, centres)
    teacher_cells, teacher_distances = cells_of(teacher, centres)
    student_cells, _ = cells_of(student, centres)
    counts = [np.bincount(cells, minlength=len(centres)) for cells in (reference_cells, teacher_cells, student_cells)]
    fractions = [c / c.sum() for c in counts]
    p = _moved_out(teacher_cells, student_cells, len(centres))
    q = stats.false_discovery_control(p)
    rows = []
    for k in np.lexsort((fractions[2] - fractions[1], p)).tolist():
        numbers = (float(fractions[0][k]), float(fractions[1][k]), float(fractions[2][k]), float(p[k]), float(q[k]))
        rows.append(
            Bin(k, *numbers, _nearest(reference_cells, reference_distances, k), _nearest(teacher_cells, teacher_distances, k))
        )
    return ModeLoss(
        bins=tuple(rows),
        lost=tuple(b.number for b in rows if b.q_value <= false_discovery_rate),
        teacher_ndb=differing_bins(counts[0], counts[1]) / len(centres),
        student_ndb=differing_bins(counts[0], counts[2]) / len(centres),
        teacher_divergence=float(jensenshannon(fractions[0], fractions[1]) ** 2),
        student_divergence=float(jensenshannon(fractions[0], fractions[2]) ** 2),
        false_discovery_rate=false_discovery_rate,
    )


def fit_bins(reference: Features, bins: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Centres (K, D) of k-means over features (M, D), initialised by k-means++; K is `bins` minus the cells that ran empty.

    Raises:
        ValueError: fewer images than bins, or fewer than 2 bins.
    """
    x = np.asarray(reference, dtype=np.float32)
    if not 2 <= bins <= len(x):
        raise ValueError(f"bins: got {bins}, expects from 2 to the number of reference images ({len(x)}).")
    centres, cells = kmeans2(x, bins, iter=30, minit="++", missing="warn", seed=seed)
    return centres[np.unique(cells)].astype(np.float32)


def cells_of(features: Features, centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Number of the nearest centre of each row (N,), and the distance to it (N,)."""
    x, c = torch.as_tensor(features).float(), torch.from_numpy(centres)
    nearest = [torch.cdist(block, c).min(dim=1) for block in x.split(4096)]
    return torch.cat([n.indices for n in nearest]).numpy(), torch.cat([n.values for n in nearest]).numpy()


def differing_bins(a: NDArray[np.int64], b: NDArray[np.int64], significance: float = 0.05) -> int:
    """The number of bins in which the counts `a` and `b` (K,) differ by a two-proportion z-test (Richardson & Weiss 2018).

    The pooled proportion is that of both counts together.
    """
    pooled = (a + b) / (a.sum() + b.sum())
    error = np.sqrt(pooled * (1 - pooled) * (1 / a.sum() + 1 / b.sum()))
    z = np.abs(a / a.sum() - b / b.sum()) / np.where(error > 0, error, 1)
    return int((z > stats.norm.isf(significance / 2)).sum())


def _moved_out(teacher: NDArray[np.int64], student: NDArray[np.int64], bins: int) -> NDArray[np.float64]:
    """McNemar's exact test, one-sided, (K,): probability that so few of the pairs that change bins enter each bin."""
    moved = teacher != student
    left = np.bincount(teacher[moved], minlength=bins)
    entered = np.bincount(student[moved], minlength=bins)
    return stats.binom.cdf(entered, left + entered, 0.5)


def _nearest(cells: NDArray[np.int64], distance: NDArray[np.float32], cell: int) -> tuple[int, ...]:
    rows = np.flatnonzero(cells == cell)
    return tuple(rows[np.argsort(distance[rows], kind="stable")][:SHOWN].tolist())
