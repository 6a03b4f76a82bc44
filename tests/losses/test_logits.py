import math

import numpy as np
import pytest
import torch

from gendistill.losses.logits import bernoulli_kd, kd, mse_logits


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_papers_formula_summed_by_hand(temperature, generator):
    student, teacher = 3 * torch.randn(2, 5, 7, generator=generator).double()
    p, q = (softmax(logits.numpy() / temperature) for logits in (teacher, student))
    divergences = [sum(p[b, k] * (math.log(p[b, k]) - math.log(q[b, k])) for k in range(7)) for b in range(5)]
    expected = temperature**2 * np.mean(divergences)
    assert kd(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_kd_of_two_even_classes_against_three_to_one_is_known():
    """softmax(log 3, 0) is (3/4, 1/4): KL to (1/2, 1/2) is 3/4 log 3/2 + 1/4 log 1/2."""
    value = kd(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), temperature=1)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_kd_tends_to_half_the_variance_of_the_logits_difference_at_high_temperature(generator):
    student, teacher = torch.randn(2, 6, 10, generator=generator).double()
    difference = teacher - student
    expected = (difference - difference.mean(1, keepdim=True)).square().mean() / 2
    torch.testing.assert_close(kd(student, teacher, 1e4), expected, rtol=1e-3, atol=0)


def test_kd_does_not_see_a_shift_of_all_logits_and_mse_logits_does(generator):
    student, teacher = torch.randn(2, 6, 10, generator=generator).double()
    torch.testing.assert_close(kd(student + 5, teacher - 2), kd(student, teacher))
    torch.testing.assert_close(mse_logits(teacher + 3, teacher), torch.tensor(9.0).double())


def test_kd_of_a_map_of_class_logits_is_the_mean_over_its_places(generator):
    student, teacher = torch.randn(2, 3, 4, 5, 6, generator=generator)
    flat = (logits.permute(0, 2, 3, 1).reshape(-1, 4) for logits in (student, teacher))
    torch.testing.assert_close(kd(student, teacher), kd(*flat))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(8,), (2, 1, 3, 5)])
def test_bernoulli_kd_is_kd_of_the_logits_l_and_0(temperature, shape, generator):
    student, teacher = 4 * torch.randn(2, *shape, generator=generator).double()
    pairs = [torch.stack([logit.flatten(), torch.zeros(logit.numel()).double()], 1) for logit in (student, teacher)]
    torch.testing.assert_close(bernoulli_kd(student, teacher, temperature), kd(*pairs, temperature))


def test_bernoulli_kd_of_an_undecided_student_against_a_known_teacher():
    """KL of (3/4, 1/4) to (1/2, 1/2), teacher logit log 3."""
    value = bernoulli_kd(torch.zeros(1), torch.tensor([math.log(3)]))
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


@pytest.mark.parametrize(("student", "teacher"), [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (0.0, 1e4), (90.0, 89.0)])
def test_bernoulli_kd_is_finite_for_logits_that_saturate_and_pulls_the_right_way(student, teacher):
    logit = torch.tensor([student], requires_grad=True)
    value = bernoulli_kd(logit, torch.tensor([teacher]))
    value.backward()
    expected = torch.sigmoid(torch.tensor([student])) - torch.sigmoid(torch.tensor([teacher]))
    assert value.isfinite()
    assert value > -1e-30
    torch.testing.assert_close(logit.grad, expected)  # the closed form of the gradient


@pytest.mark.parametrize("loss", [kd, bernoulli_kd, mse_logits])
def test_a_loss_is_zero_at_equality_positive_elsewhere_and_the_same_for_a_doubled_batch(loss, generator):
    student, teacher = torch.randn(2, 6, 4, generator=generator)
    assert loss(student, student).abs() < 1e-6
    assert loss(student, teacher) > 0.01
    torch.testing.assert_close(loss(student.repeat(2, 1), teacher.repeat(2, 1)), loss(student, teacher))


@pytest.mark.parametrize("loss", [kd, bernoulli_kd])
def test_the_gradients_strength_hardly_depends_on_the_temperature(loss, generator):
    student, teacher = torch.randn(2, 6, 4, generator=generator)

    def strength(temperature):
        logits = student.clone().requires_grad_()
        loss(logits, teacher, temperature).backward()
        return logits.grad.norm()

    assert 0.9 < strength(20) / strength(10) < 1.1


@pytest.mark.parametrize("loss", [kd, bernoulli_kd, mse_logits])
def test_gradients_agree_with_finite_differences(loss, generator):
    student, teacher = torch.randn(2, 3, 4, generator=generator).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [kd, bernoulli_kd, mse_logits])
def test_half_precision_is_computed_in_float32(loss, dtype, generator):
    student, teacher = (300 * torch.randn(2, 6, 4, generator=generator)).to(dtype)  # whose squares are beyond float16
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    for loss in (kd, bernoulli_kd):
        with pytest.raises(ValueError, match=r"temperature .*: expects more than 0"):
            loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


@pytest.mark.parametrize("loss", [kd, bernoulli_kd, mse_logits])
def test_logits_that_would_be_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(4, 1\): expects the shape it is compared with, \(4,\)"):
        loss(torch.zeros(4, 1), torch.zeros(4))
