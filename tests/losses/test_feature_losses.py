import numpy as np
import pytest
import torch

from gendistill.losses.feature_maps import attention_transfer, gram, hint

LOSSES = [hint, attention_transfer, gram]


def pair(generator, shape=(3, 4, 6, 5)):
    return torch.randn(2, *shape, generator=generator).double()


def test_a_hint_is_the_mean_squared_difference(generator):
    student, teacher = pair(generator)
    assert hint(student, teacher).item() == pytest.approx(np.mean((student - teacher).numpy() ** 2), rel=1e-9)


def test_attention_transfer_is_the_papers_formula_summed_by_hand(generator):
    student, teacher = pair(generator)

    def normalised(sample):
        total = np.array([[sum(sample[c, i, j] ** 2 for c in range(4)) for j in range(5)] for i in range(6)]).ravel()
        return total / np.sqrt((total**2).sum())

    distances = [((normalised(s) - normalised(t)) ** 2).sum() for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert attention_transfer(student, teacher).item() == pytest.approx(np.mean(distances), rel=1e-9)


def test_attention_at_different_places_is_two_apart():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    student[0, 0, 0, 0], teacher[0, 1, 1, 1] = 3.0, 0.5
    assert attention_transfer(student, teacher).item() == pytest.approx(2)


def test_attention_does_not_see_the_order_of_channels_their_signs_nor_their_scale(generator):
    student, teacher = pair(generator)
    expected = attention_transfer(student, teacher)
    torch.testing.assert_close(attention_transfer(student[:, [2, 0, 3, 1]], teacher), expected)
    torch.testing.assert_close(attention_transfer(-3 * student, 0.1 * teacher), expected)
    assert not torch.isclose(attention_transfer(student.flip(3), teacher), expected)


def test_attention_of_maps_of_other_sizes_is_compared_on_the_smaller(generator):
    teacher = torch.rand(2, 5, 4, 4, generator=generator)
    student = torch.cat([teacher, teacher], 1).repeat_interleave(2, 2).repeat_interleave(2, 3)  # more channels and places
    assert attention_transfer(student, teacher).item() == pytest.approx(0, abs=1e-10)
    assert attention_transfer(teacher, student).item() == pytest.approx(0, abs=1e-10)
    assert attention_transfer(student.flip(2), teacher) > 1e-3


def test_gram_is_the_papers_formula_summed_by_hand(generator):
    """E of Gatys et al.: the sum of squared differences over 4 N^2 M^2, where the Gram matrix is a sum over the M places."""
    student, teacher = pair(generator)
    n, m = 4, 30
    energies = []
    for s, t in zip(student.flatten(2).numpy(), teacher.flatten(2).numpy(), strict=True):
        difference = sum(
            (sum(s[i, k] * s[j, k] for k in range(m)) - sum(t[i, k] * t[j, k] for k in range(m))) ** 2
            for i in range(n)
            for j in range(n)
        )
        energies.append(difference / (4 * n**2 * m**2))
    assert gram(student, teacher).item() == pytest.approx(np.mean(energies), rel=1e-9)


def test_gram_does_not_see_where_features_are(generator):
    student, teacher = pair(generator)
    shuffled = student.flatten(2)[:, :, torch.randperm(30, generator=generator)].view_as(student)
    torch.testing.assert_close(gram(shuffled, teacher), gram(student, teacher))
    assert gram(student.repeat(1, 1, 2, 2), student).item() == pytest.approx(0, abs=1e-12)  # nor how many places there are


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_zero_at_equality_symmetric_and_the_same_for_a_doubled_batch(loss, generator):
    student, teacher = pair(generator)
    assert loss(student, student) == 0
    assert loss(student, teacher) > 1e-3
    torch.testing.assert_close(loss(student, teacher), loss(teacher, student))
    torch.testing.assert_close(loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), loss(student, teacher))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss, generator):
    student, teacher = pair(generator, (2, 3, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (student, teacher))


def test_dead_features_have_no_attention_and_finite_gradients(generator):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention_transfer(student, torch.rand(2, 3, 4, 4, generator=generator))
    value.backward()
    assert value.item() == pytest.approx(1)  # the distance of a map of length 1 from nothing
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, dtype, generator):
    student, teacher = (300 * torch.rand(2, 3, 4, 6, 5, generator=generator)).to(dtype)  # whose squares are beyond float16
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_narrow_a_loss(loss, generator):
    student, teacher = pair(generator).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher)
    assert torch.equal(value, loss(student, teacher))


def test_features_that_do_not_go_together_are_refused():
    with pytest.raises(
        ValueError, match=r"student features \(2, 3, 4, 4\): expects the shape it is compared with, \(2, 5, 4, 4\)"
    ):
        hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"student Gram matrices \(2, 3, 3\)"):
        gram(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"student batch \(1,\)"):
        attention_transfer(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
