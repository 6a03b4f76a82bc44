"""Matching what is inside of two networks: feature maps of student and teacher on the same inputs.

All are 0 where the features agree and means over the batch, so that a weight holds for any batch size. Gradients flow to both:
detach the teacher where it is not trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, in_float32, unit


@in_float32
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features (B, C, ...) of any one shape, in the features' own scale, a scalar.

    FitNets (Romero et al. 2015, eq. 3; half of the sum over elements there), after their regressor from the student's shape
    to the teacher's (`networks.hints.Regressors`). Weight: 100 for this mean (Tian et al. 2020's comparison); scale it with
    the inverse of the teacher's variance where layers differ.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(student, teacher, "student features")
    return (student - teacher).square().mean()


@in_float32
def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two attention maps, each of length 1 over its places, averaged over the batch: in [0, 2].

    Zagoruyko & Komodakis 2017, eq. 2, squared as in their code, of the sum over channels of |A|^2 (section 3.1). `student`
    (B, C, h, w) and `teacher` (B, C', h', w') need have neither channels nor places in common: the larger map is pooled to
    the smaller. A map of zeros stays zero. Weight: 1000 / (h w) for this sum over places (section 4: 10^3 over the elements
    of map and batch).

    Raises:
        ValueError: the batches differ.
    """
    check_shapes(student[:, 0, 0, 0], teacher[:, 0, 0, 0], "student batch")
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    maps = (F.adaptive_avg_pool2d(features.square().sum(1)[:, None], size).flatten(1) for features in (student, teacher))
    of_student, of_teacher = (unit(one, 1) for one in maps)
    return (of_student - of_teacher).square().sum(1).mean()


@in_float32
def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """A quarter of the mean squared difference of Gram matrices, a scalar in the features' scale to the fourth.

    Gatys et al. 2016, eq. 4: what textures features have, wherever they are; the matrices (B, C, C) of eq. 3 averaged over
    places. `student` (B, C, ...) and `teacher` (B, C, ...) may differ in places, not in channels. Weights depend on the
    network; the paper's, about 1000 times that of content, is of VGG rescaled to unit mean activation.

    Raises:
        ValueError: batches or channels differ.
    """
    of_student, of_teacher = (_gram_matrix(features.flatten(2)) for features in (student, teacher))
    check_shapes(of_student, of_teacher, "student Gram matrices")
    return (of_student - of_teacher).square().mean() / 4


def _gram_matrix(features: Tensor) -> Tensor:
    return torch.einsum("bim,bjm->bij", features, features) / features.shape[2]
