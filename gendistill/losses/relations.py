"""Relational distillation losses between student and teacher embeddings of one batch, whose dimensions may differ.

Embeddings are (B, D), or feature maps (B, ...), which are flattened. All losses but `contrastive` are 0 where the relations
agree. They are means over samples, pairs or triplets. Gradients flow to both networks: detach the teacher where it is not
trained. Identical embeddings give gradient 0, not infinity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_batch, check_shapes, in_float32, unit

GAMMA, ORDER = 0.4, 2  # kernel width and Taylor order of `correlation_congruence`
TEMPERATURE = 0.1  # temperature of `contrastive`


@in_float32
def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the pairwise distances, those of each network divided by their mean, averaged over pairs: a scalar.

    Park et al. 2019, section 3.2.1 (RKD-D). Invariant to translation, rotation and scaling of an embedding space. Pairs consist
    of two different samples, as in the paper; its code averages over B^2 instead, a factor of (B - 1) / B. The mean distance is
    1. Weight: 25 for classifiers, 1 for metric learning, with `rkd_angle` at twice that (sections 4.1 and 4.2).

    Raises:
        ValueError: the batches differ or have fewer than 2 samples.
    """
    _check(student, teacher, 2, "rkd_distance")
    return F.huber_loss(_relative_distances(student), _relative_distances(teacher))


@in_float32
def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles of all triplets, averaged over triplets: a scalar in [0, 1.5].

    Park et al. 2019, section 3.2.2 (RKD-A): the angle at sample j between i and k, for i, j, k all different. Invariant to
    translation, rotation and scaling of an embedding space. An angle at a side of length 0 counts as a right angle. Memory:
    B^2 D + B^3 numbers. Weight: 50 for classifiers, 2 for metric learning.

    Raises:
        ValueError: the batches differ or have fewer than 3 samples.
    """
    _check(student, teacher, 3, "rkd_angle")
    count = len(student)
    losses = F.huber_loss(_cosines_of_angles(student), _cosines_of_angles(teacher), reduction="none")
    same_sample = torch.eye(count, dtype=torch.bool, device=losses.device)  # i = k; at i = j and k = j the cosine is 0 in both
    return losses.masked_fill(same_sample, 0).sum() / (count * (count - 1) * (count - 2))


@in_float32
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two similarity matrices, whose rows have length 1, averaged over samples: in [0, 4].

    Tung & Mori 2019, section 3, times B: the paper divides the sum over all B^2 entries by B^2, which halves when the batch
    doubles, as rows have length 1. Invariant to rotation and scaling of a feature space. Weight: 3000 / B for the paper's 3000,
    so about 23 for its batches of 128.

    Raises:
        ValueError: the batches differ or have fewer than 2 samples.
    """
    _check(student, teacher, 2, "similarity_preserving")
    return (_similarities(student) - _similarities(teacher)).square().sum(1).mean()


@in_float32
def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two kernel matrices (B, B) of embeddings of length 1, a scalar.

    Peng et al. 2019, section 3: the Gaussian kernel exp(-gamma |x - y|^2) by its Taylor expansion about x . y = 0 up to the
    paper's order 2, with its gamma 0.4; the loss is at most 0.52. Invariant to rotation of a space and to the scale of each
    embedding. The paper's weights hold for its own setting only.

    Raises:
        ValueError: the batches differ or have fewer than 2 samples.
    """
    _check(student, teacher, 2, "correlation_congruence")
    return (_correlations(student) - _correlations(teacher)).square().mean()


@in_float32
def contrastive(student: Tensor, teacher: Tensor) -> Tensor:
    """InfoNCE: classify which teacher embedding of the batch belongs to a student embedding. A scalar in nats, log B at chance.

    Embeddings (B, D) of equal dimension (a learned projection of each gives that) are normalised to length 1; the logits are
    their cosines over 0.1. The loss is averaged with the same classification of student embeddings, as Tian et al. 2020 (CRD)
    add the two. The negatives are the other samples of the batch (van den Oord et al. 2018, eq. 4) rather than CRD's memory
    bank, so this is the only loss here that depends on the batch size. Weight: 0.8 (CRD).

    Raises:
        ValueError: the shapes differ, or there are fewer than 2 samples.
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    check_shapes(student, teacher, "student embeddings")
    check_batch(student, 2, "contrastive")
    logits = unit(student, 1) @ unit(teacher, 1).T / TEMPERATURE
    positives = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def _relative_distances(x: Tensor) -> Tensor:
    """|x_i - x_j| divided by its mean, for all pairs i < j; zeros where all embeddings are identical."""
    distances = F.pdist(x.flatten(1))
    mean = distances.mean()
    return distances / torch.where(mean > 0, mean, torch.inf)


def _cosines_of_angles(x: Tensor) -> Tensor:
    """[j, i, k]: the cosine of the angle at x_j between x_i and x_k; 0 where x_j is one of them."""
    x = x.flatten(1)
    directions = unit(x[None] - x[:, None], 2)
    return directions @ directions.mT


def _similarities(x: Tensor) -> Tensor:
    x = x.flatten(1)
    return unit(x @ x.T, 1)


def _correlations(x: Tensor) -> Tensor:
    x = unit(x.flatten(1), 1)
    cosines = x @ x.T
    terms = [(2 * GAMMA) ** p / math.factorial(p) * cosines**p for p in range(ORDER + 1)]
    return math.exp(-2 * GAMMA) * torch.stack(terms).sum(0)


def _check(student: Tensor, teacher: Tensor, min_samples: int, loss_name: str) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"student batch of {len(student)}: expects the teacher's size, {len(teacher)}")
    check_batch(student, min_samples, loss_name)
