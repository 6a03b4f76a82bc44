"""Logit distillation losses: distances between the logits of student and teacher, of a class head or a real/fake head.

All losses are 0 where the logits agree. They are means over the batch, so their weights do not depend on the batch size.
Gradients flow to both networks: detach the teacher where it is not trained.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_shapes, in_float32


@in_float32
def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of class logits (B, K) or (B, K, ...), a scalar in nats, at least 0.

    Hinton et al. 2015, section 2: the gradients of softened logits shrink with 1 / T^2, so the factor T^2 keeps the weight
    valid when T changes. For large T the loss becomes the squared difference of the logits, each centred over classes, divided
    by 2 K (section 2.1). Weight: 0.9, with 0.1 for the loss of the labels, at T = 4 (the comparison of Tian et al. 2020);
    Hinton et al. only state that the weight of the labels should be considerably lower.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    check_shapes(student_logits, teacher_logits, "student logits")
    _check_temperature(temperature)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean()


@in_float32
def bernoulli_kd(student_logit: Tensor, teacher_logit: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(Bernoulli(sigmoid(teacher / T)) || Bernoulli(sigmoid(student / T))), a scalar in nats, at least 0 up to rounding.

    `kd` for a single real/fake logit: (B,), or those of a PatchGAN (B, 1, h, w), averaged over patches. It equals `kd` of the
    two logits (l, 0). Near agreement it is T^2 p (1 - p) (difference / T)^2 / 2: its gradient nearly vanishes where the
    teacher is confident, which a higher temperature corrects.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.
    """
    check_shapes(student_logit, teacher_logit, "student logit")
    _check_temperature(temperature)
    student, teacher = student_logit / temperature, teacher_logit / temperature
    real = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    fake = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (real + fake).mean()


@in_float32
def mse_logits(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of logits of equal shape, in their own scale, a scalar (Ba & Caruana 2014).

    Unlike `kd` it also matches a common shift of all logits of a sample, to which softmax is invariant: suited to hinge and
    Wasserstein critics, whose logits do not define probabilities.

    Raises:
        ValueError: the shapes differ.
    """
    check_shapes(student_logits, teacher_logits, "student logits")
    return (student_logits - teacher_logits).square().mean()


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature:g}: expects more than 0")
