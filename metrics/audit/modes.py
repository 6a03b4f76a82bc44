"""Which modes a student lost: the share of its images in each bin of the reference's features.

The bins are the reference images' k-means cells (NDB, Richardson & Weiss 2018). A model that leaves out a
kind of image has too few in its bins, which a distance between two Gaussians hardly feels.
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
    """One cell: the shares of the reference's, the teacher's and the student's images in it.

    p_value: one-sided, that the student's share is no smaller than the teacher's; q_value: corrected for the number of
    bins (Benjamini & Hochberg 1995). examples: numbers of reference images, nearest to the cell's centre first;
    teacher_examples: numbers of the teacher's images in it, likewise.
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
    """Bins by how much the student lost, the most first.

    teacher_ndb, student_ndb: the share in [0, 1] of bins whose share differs from the reference's (two-proportion z-test,
    5 %, not corrected, as in the paper: 0.05 is what chance gives). teacher_divergence, student_divergence: Jensen-Shannon
    divergence of the bins' shares from the reference's, in nats, [0, ln 2]. lost: numbers of the bins where the student's
    share is smaller than the teacher's beyond chance, corrected for their number.
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
            f"Bins whose share differs from the reference's: teacher {self.teacher_ndb:.0%}, student {self.student_ndb:.0%} "
            f"of {len(self.bins)}; Jensen-Shannon divergence {self.teacher_divergence:.3f} and {self.student_divergence:.3f}."
        )
        if not self.lost:
            return f"{first} The student lost no mode of the teacher's beyond chance."
        lost = [b for b in self.bins if b.number in self.lost]
        before, after = sum(b.teacher for b in lost), sum(b.student for b in lost)
        return (
            f"{first} The student lost ground in {len(lost)} of them, which hold {before:.1%} of the teacher's images and "
            f"{after:.1%} of its own; {sum(b.student == 0 for b in lost)} are empty."
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
    """Where the student of a teacher samples too little of the same prompts and seeds, from features (M, D), (N, D) and (N, D).

    Only the images that changed sides count (McNemar's exact test).

    Args:
        bins: fewer make surer of each, more see smaller modes; with N / bins of 20 or more, a bin that is lost whole
            is found.

    Raises:
        ValueError: widths differ, a set is empty, numbers of teacher and student differ, or more bins than reference images.
    """
    shapes = [tuple(f.shape) for f in (reference, teacher, student)]
    if any(len(s) != 2 or s[0] == 0 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"reference, teacher, student: got shapes {shapes}, expects (M, D), (N, D) and (N, D).")
    if shapes[1] != shapes[2]:
        raise ValueError(f"student: got {shapes[2][0]} images for {shapes[1][0]} of the teacher, expects one for each.")
    centres = fit_bins(reference, bins, seed)
    real, far_real = cells_of(reference, centres)
    of_teacher, far_teacher = cells_of(teacher, centres)
    of_student, _ = cells_of(student, centres)
    counts = [np.bincount(cells, minlength=len(centres)) for cells in (real, of_teacher, of_student)]
    shares = [c / c.sum() for c in counts]
    p = _moved_out(of_teacher, of_student, len(centres))
    q = stats.false_discovery_control(p)
    rows = []
    for k in np.lexsort((shares[2] - shares[1], p)).tolist():
        numbers = (float(shares[0][k]), float(shares[1][k]), float(shares[2][k]), float(p[k]), float(q[k]))
        rows.append(Bin(k, *numbers, _nearest(real, far_real, k), _nearest(of_teacher, far_teacher, k)))
    return ModeLoss(
        bins=tuple(rows),
        lost=tuple(b.number for b in rows if b.q_value <= false_discovery_rate),
        teacher_ndb=differing_bins(counts[0], counts[1]) / len(centres),
        student_ndb=differing_bins(counts[0], counts[2]) / len(centres),
        teacher_divergence=float(jensenshannon(shares[0], shares[1]) ** 2),
        student_divergence=float(jensenshannon(shares[0], shares[2]) ** 2),
        false_discovery_rate=false_discovery_rate,
    )


def fit_bins(reference: Features, bins: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Centres (K, D) of k-means over features (M, D), started by k-means++; K is `bins` or, where cells ran empty, fewer.

    Raises:
        ValueError: fewer images than bins, or fewer than 2 bins.
    """
    x = np.asarray(reference, dtype=np.float32)
    if not 2 <= bins <= len(x):
        raise ValueError(f"bins: got {bins}, expects from 2 to the number of reference images ({len(x)}).")
    centres, cells = kmeans2(x, bins, iter=30, minit="++", missing="warn", seed=seed)
    return centres[np.unique(cells)].astype(np.float32)


def cells_of(features: Features, centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest centre of each row (N,), and the distance to it."""
    x, c = torch.as_tensor(features).float(), torch.from_numpy(centres)
    nearest = [torch.cdist(block, c).min(dim=1) for block in x.split(4096)]
    return torch.cat([n.indices for n in nearest]).numpy(), torch.cat([n.values for n in nearest]).numpy()


def differing_bins(a: NDArray[np.int64], b: NDArray[np.int64], significance: float = 0.05) -> int:
    """The number of bins whose shares differ by a two-proportion z-test (Richardson & Weiss 2018).

    The pooled share is that of the two counts (K,) together.
    """
    pooled = (a + b) / (a.sum() + b.sum())
    error = np.sqrt(pooled * (1 - pooled) * (1 / a.sum() + 1 / b.sum()))
    z = np.abs(a / a.sum() - b / b.sum()) / np.where(error > 0, error, 1)
    return int((z > stats.norm.isf(significance / 2)).sum())


def _moved_out(teacher: NDArray[np.int64], student: NDArray[np.int64], bins: int) -> NDArray[np.float64]:
    """McNemar's exact test, one-sided: the chance of as few pairs moving into a bin, among those that move in or out."""
    moved = teacher != student
    left = np.bincount(teacher[moved], minlength=bins)
    entered = np.bincount(student[moved], minlength=bins)
    return stats.binom.cdf(entered, left + entered, 0.5)


def _nearest(cells: NDArray[np.int64], distance: NDArray[np.float32], cell: int) -> tuple[int, ...]:
    rows = np.flatnonzero(cells == cell)
    return tuple(rows[np.argsort(distance[rows], kind="stable")][:SHOWN].tolist())
