import pytest
import torch

from gendistill.losses.pixel import l2, pseudo_huber


def test_l2_is_torchs_mean_squared_error(generator):
    prediction, target = torch.randn(2, 4, 3, 5, 5, generator=generator)
    torch.testing.assert_close(l2(prediction, target), torch.nn.functional.mse_loss(prediction, target))


@pytest.mark.parametrize("c", [0.001, 0.5, 10.0])
def test_pseudo_huber_is_the_mean_of_its_formula(c, generator):
    prediction, target = torch.randn(2, 4, 3, 5, 5, generator=generator)
    difference = (prediction - target).double()
    expected = (torch.sqrt(difference**2 + c**2) - c).mean()
    torch.testing.assert_close(pseudo_huber(prediction, target, c).double(), expected, rtol=1e-5, atol=1e-7)


def test_pseudo_huber_is_the_mean_absolute_error_far_above_c_and_half_the_square_over_c_far_below(generator):
    prediction, target = torch.randn(2, 4, 3, 5, 5, generator=generator)
    absolute = (prediction - target).abs().mean()
    torch.testing.assert_close(pseudo_huber(prediction, target, 1e-7), absolute, rtol=1e-4, atol=0)
    torch.testing.assert_close(pseudo_huber(prediction, target, 100) * 200, l2(prediction, target), rtol=1e-2, atol=0)


@pytest.mark.parametrize("distance", [l2, pseudo_huber])
def test_a_distance_is_zero_at_equality_symmetric_and_float32_for_half_precision(distance, generator):
    prediction, target = torch.randn(2, 4, 3, generator=generator).half()
    assert distance(prediction, prediction) == 0
    assert distance(prediction, target) == distance(target, prediction)
    assert distance(prediction, target).dtype == torch.float32


@pytest.mark.parametrize("distance", [l2, pseudo_huber])
def test_the_gradient_is_finite_where_prediction_and_target_are_equal(distance):
    prediction = torch.ones(3, requires_grad=True)
    distance(prediction, torch.ones(3)).backward()
    assert torch.equal(prediction.grad, torch.zeros(3))
