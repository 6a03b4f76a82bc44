"""Matching what is inside of two networks: feature maps of student and teacher on the same inputs.

All are 0 where the features agree and means over the batch, so that a weight holds for any batch size. Gradients flow to both:
detach the teacher where it is not trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, in_float32, unit


def hint(student: Tensor, teacher: Tensor, regressor: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean squared difference of features (B, C, ...) of any one shape, in the features' own scale, a scalar.

    FitNets (Romero et al. 2015, eq. 3; half of the sum over elements there), with their `regressor` from the student's shape
    to the teacher's, which is trained along. Weight: 100 for this mean (Tian et al. 2020's comparison); scale it with the
    inverse of the teacher's variance where layers differ.

    Raises:
        ValueError: the shapes differ, after the regressor where there is one.
    """
    regressed = student if regressor is None else regressor(student)
    check_shapes(regressed, teacher, "student features" if regressor is None else "regressed student features")
    return _mean_square(regressed, teacher)


@in_float32
def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """sum over channels of |A|^p of features (B, C, h, w), (B, h, w) (Zagoruyko & Komodakis 2017, section 3.1)."""
    return features.abs().pow(p).sum(1)


@in_float32
def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Squared distance of the two attention maps, each of length 1 over its places, averaged over the batch: in [0, 2].

    Zagoruyko & Komodakis 2017, eq. 2, squared as in their code. `student` (B, C, h, w) and `teacher` (B, C', h', w') need have
    neither channels nor places in common: the larger map is pooled to the smaller. A map of zeros stays zero.
    Weight: 1000 / (h w) for this sum over places (section 4: 10^3 over the elements of map and batch).

    Raises:
        ValueError: the batches differ, or p is below 1.
    """
    if p < 1:
        raise ValueError(f"p {p:g}: takes at least 1")
    check_shapes(student[:, 0, 0, 0], teacher[:, 0, 0, 0], "student batch")
    maps = attention_map(student, p)[:, None], attention_map(teacher, p)[:, None]
    of_student, of_teacher = (unit(one.flatten(1), 1) for one in _pooled_to_the_smaller(*maps))
    return (of_student - of_teacher).square().sum(1).mean()


@in_float32
def gram_matrix(features: Tensor) -> Tensor:
    """Products of channels (B, C, C) of features (B, C, ...), averaged over places (Gatys et al. 2016, eq. 3, over M)."""
    return _products(features, features)


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """A quarter of the mean squared difference of Gram matrices, a scalar in the features' scale to the fourth.

    Gatys et al. 2016, eq. 4: what textures features have, wherever they are. `student` (B, C, ...) and `teacher` (B, C, ...)
    may differ in places, not in channels. Weights depend on the network; the paper's, about 1000 times that of content, is of
    VGG rescaled to unit mean activation.

    Raises:
        ValueError: batches or channels differ.
    """
    of_student, of_teacher = gram_matrix(student), gram_matrix(teacher)
    check_shapes(of_student, of_teacher, "student Gram matrices")
    return _mean_square(of_student, of_teacher) / 4


@in_float32
def flow_of_solution(student_first: Tensor, student_second: Tensor, teacher_first: Tensor, teacher_second: Tensor) -> Tensor:
    """Mean squared difference of the products of channels between two layers of a network, a scalar in their scale squared.

    FSP (Yim et al. 2017, eq. 1 and 2; the sum over elements there): how the second layer (B, C2, h, w) goes with the first
    (B, C1, h, w). The larger of a network's two maps is pooled to the smaller. Weight: 50 for this mean (Tian et al. 2020's
    comparison).

    Raises:
        ValueError: batches or channels of student and teacher differ.
    """
    of_student, of_teacher = _flow(student_first, student_second), _flow(teacher_first, teacher_second)
    check_shapes(of_student, of_teacher, "student flow")
    return _mean_square(of_student, of_teacher)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    return _products(*_pooled_to_the_smaller(first, second))


def _pooled_to_the_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return F.adaptive_avg_pool2d(first, size), F.adaptive_avg_pool2d(second, size)


def _products(first: Tensor, second: Tensor) -> Tensor:
    first, second = first.flatten(2), second.flatten(2)
    return torch.einsum("bim,bjm->bij", first, second) / first.shape[2]


@in_float32
def _mean_square(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().mean()
