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
SMALLEST = 1e-8  # eigenvalue of a product of covariances, as a fraction of the largest one
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


class FrechetMoments:
    """The Fréchet distance of a student's features to real ones as a loss (Yang et al. 2026): of a population that is much
    larger than a batch.

    The student's mean and second moment are moving averages, which begin at the real ones: the distance is 0 at first and
    grows to its value while the student's samples replace them, so that no covariance is ever one of few samples.

    Attributes:
        mean, second: (D,) and (D, D), float64, the student's moments, updated in place.

    Args:
        real: features (M, D) of real samples.
        population: the student's latest samples, over which the average extends.
    """

    def __init__(self, real: Tensor, population: int) -> None:
        real = real.cpu().double() if real.device.type == "mps" else real.double()  # which has no float64
        self.population = population
        self.real_mean, self.real_covariance = real.mean(0), torch.cov(real.T, correction=0)
        values, vectors = torch.linalg.eigh(self.real_covariance)
        self.real_root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        self.mean, self.second = self.real_mean.clone(), real.T @ real / len(real)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Let the moments include features (B, D); values that are not finite change nothing."""
        features, fraction = features.to(self.mean), min(len(features) / self.population, 1.0)
        finite = features.isfinite().all()
        for moment, of_batch in ((self.mean, features.mean(0)), (self.second, features.T @ features / len(features))):
            moment.copy_(torch.where(finite, moment.lerp(of_batch, fraction), moment))

    @torch.no_grad()
    def distance(self) -> tuple[Tensor, Tensor]:
        """The distance, a scalar, and its derivative (D, D) by the student's covariance S.

        With R the real covariance and A its root, tr(S + R - 2 (A S A)^(1/2)) has the derivative I - A (A S A)^(-1/2) A.
        """
        covariance = self.second - torch.outer(self.mean, self.mean)
        values, vectors = torch.linalg.eigh(self.real_root @ covariance @ self.real_root)
        roots = values.clamp(min=SMALLEST * float(values.max())).sqrt()
        inverse = self.real_root @ ((vectors / roots) @ vectors.T) @ self.real_root
        traces = covariance.trace() + self.real_covariance.trace() - 2 * roots.sum()
        return (self.mean - self.real_mean).square().sum() + traces, torch.eye(len(inverse)).to(inverse) - inverse

    def loss(self, features: Tensor) -> Tensor:
        """The distance, a scalar, whose gradient at features (B, D) is that of a population of B samples."""
        distance, by_covariance = self.distance()
        shift = features.detach().to(self.mean) - self.mean
        gradient = (2 * (self.mean - self.real_mean + shift @ by_covariance)).to(features)
        value = (features * gradient).sum() / len(features)
        return value - value.detach() + distance.to(value)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode loses small distances to rounding


FEATURE_MATCHING: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "mmd": conditional_mmd,
    "drift": drift_loss,
}
