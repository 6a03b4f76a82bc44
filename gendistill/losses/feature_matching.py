"""Losses between the features of a student's samples and those of real samples with the same conditions.

Features are (B, D) of the student and (M, D) of real samples, with their conditions as vectors (B, C) and (M, C): one-hot for
classes. Pairs count by how similar their conditions are: a Gaussian kernel, close to 1 for equal prompts and to 0 for others.
All functions compute in float32 at least; gradients flow to the student's features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.distributions import FACTORS
from gendistill.losses.numerics import check_batch, in_float32
from gendistill.losses.score_matching import loss_with_gradient

CONDITION_FACTOR = 0.25  # bandwidth of the kernel of conditions in units of their median distance
TEMPERATURES = (0.25, 0.5, 1.0)  # of the drift's kernel in units of the median distance


def median_distance(x: Tensor) -> Tensor:
    """The median distance of the rows of x (N, D), 0-d; 1 where it is 0."""
    median = F.pdist(x.float()).median() if len(x) > 1 else x.new_zeros(())
    return torch.where(median > 0, median, 1.0)


def log_similarity(conditions: Tensor, others: Tensor, scale: Tensor) -> Tensor:
    """The logarithm (B, M) of a Gaussian kernel of conditions (B, C) and (M, C), 0 for equal ones; `scale` is their median
    distance."""
    return _distances(conditions.float(), others.float()).square() / (-2 * (CONDITION_FACTOR * scale) ** 2)


@in_float32
def conditional_mmd(student: Tensor, real: Tensor, among: Tensor, between: Tensor, scale: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the joint distributions of features and conditions, without the term of the real
    samples alone, which no gradient depends on: a scalar.

    Gretton et al. 2012, eq. 3, with the product of a kernel of features and one of conditions. The kernel of features is the
    mean of Gaussian kernels of several bandwidths, `FACTORS` times `scale`.

    Args:
        among, between: `log_similarity` of the conditions of the student's samples with each other (B, B), and with those of
            the real ones (B, M).
        scale: the median distance of real features, 0-d.

    Raises:
        ValueError: fewer than 2 samples of the student.
    """
    check_batch(student, 2, "conditional_mmd")

    def kernel(samples: Tensor, similarity: Tensor) -> Tensor:
        squares = _distances(student, samples).square()
        return torch.stack([(similarity - squares / (2 * (scale * factor) ** 2)).exp() for factor in FACTORS]).mean(0)

    own = kernel(student, among)
    others = (own.sum() - own.diagonal().sum()) / (len(student) * (len(student) - 1))
    return others - 2 * kernel(real, between).mean()


@in_float32
def drift(student: Tensor, real: Tensor, among: Tensor, between: Tensor, temperature: Tensor | float) -> Tensor:
    """The field V (B, D) that moves the student's features: the mean shift towards real ones less that towards the student's
    other ones (Deng et al. 2026, section 3), with the kernel exp(-|x - y| / temperature).

    Its mean is 0 where both distributions are equal. Arguments and errors as in `conditional_mmd`.
    """
    check_batch(student, 2, "drift")
    among = among.masked_fill(torch.eye(len(student), dtype=torch.bool, device=student.device), -torch.inf)

    def nearby(samples: Tensor, similarity: Tensor) -> Tensor:
        return torch.softmax(similarity - _distances(student, samples) / temperature, dim=1) @ samples

    return nearby(real, between) - nearby(student, among)


def drift_loss(student: Tensor, real: Tensor, among: Tensor, between: Tensor, scale: Tensor) -> Tensor:
    """|x - stop(x + V)|^2 / 2 of features in units of their median distance `scale`, a scalar: the mean over several
    temperatures of the kernel (Deng et al. 2026, section 3)."""
    x, y = student.float() / scale, real.float() / scale
    fields = [drift(x.detach(), y, among, between, temperature) for temperature in TEMPERATURES]
    return torch.stack([loss_with_gradient(x, -field) for field in fields]).mean()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode loses small distances to rounding


FEATURE_MATCHING: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "mmd": conditional_mmd,
    "drift": drift_loss,
}
