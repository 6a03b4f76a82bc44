"""Feature distillation losses: distances between feature maps of student and teacher on the same inputs.

All losses are 0 where the features agree. They are means over the batch, so their weights do not depend on the batch size.
Gradients flow to both networks: detach the teacher where it is not trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, in_float32, unit


@in_float32
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features (B, C, ...) of equal shape, in the features' own scale, a scalar.

    FitNets (Romero et al. 2015, eq. 3; half of the sum over elements there), applied after the regressor from the student's
    channels to the teacher's (`networks.hints.Regressors`). Weight: 100 for this mean (the comparison of Tian et al. 2020);
    scale it with the inverse variance of the teacher's features where layers differ.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(student, teacher, "student features")
    return (student - teacher).square().mean()


@in_float32
def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two attention maps, each normalised to length 1 over its positions, averaged over the batch: in
    [0, 2].

    Zagoruyko & Komodakis 2017, eq. 2, squared as in their code; the attention map is the sum over channels of |A|^2 (section
    3.1). `student` (B, C, h, w) and `teacher` (B, C', h', w') may differ in channels and in size: the larger map is pooled to
    the size of the smaller. A map of zeros stays zero. Weight: 1000 / (h w) for this sum over positions (section 4: 10^3 over
    the elements of map and batch).

    Raises:
        ValueError: the batches differ.
    """
    check_shapes(student[:, 0, 0, 0], teacher[:, 0, 0, 0], "student batch")
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    maps = (F.adaptive_avg_pool2d(features.square().sum(1)[:, None], size).flatten(1) for features in (student, teacher))
    student_map, teacher_map = (unit(attention_map, 1) for attention_map in maps)
    return (student_map - teacher_map).square().sum(1).mean()


@in_float32
def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """A quarter of the mean squared difference of Gram matrices, a scalar in the fourth power of the features' scale.

    Gatys et al. 2016, eq. 4: compares textures regardless of their position; the matrices (B, C, C) of eq. 3 are averaged over
    positions. `student` (B, C, ...) and `teacher` (B, C, ...) may differ in size, not in channels. The weight depends on the
    network; the paper's, about 1000 times the content weight, holds for VGG rescaled to unit mean activation.

    Raises:
        ValueError: batches or channels differ.
    """
    student_gram, teacher_gram = (_gram_matrix(features.flatten(2)) for features in (student, teacher))
    check_shapes(student_gram, teacher_gram, "student Gram matrices")
    return (student_gram - teacher_gram).square().mean() / 4


def _gram_matrix(features: Tensor) -> Tensor:
    return torch.einsum("bim,bjm->bij", features, features) / features.shape[2]
