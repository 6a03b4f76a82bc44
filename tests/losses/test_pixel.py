import warnings

import numpy as np
import pytest
import torch
from torch import nn

from gendistill.losses.pixel import l1, l2, multi_scale, perceptual_distance, pseudo_huber


def test_l2_is_torchs_mean_squared_error(generator):
    prediction, target = torch.randn(2, 4, 3, 5, 5, generator=generator)
    torch.testing.assert_close(l2(prediction, target), torch.nn.functional.mse_loss(prediction, target))


def test_l1_is_torchs_mean_absolute_error(generator):
    prediction, target = torch.randn(2, 4, 3, 5, 5, generator=generator)
    torch.testing.assert_close(l1(prediction, target), torch.nn.functional.l1_loss(prediction, target))


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


@pytest.mark.parametrize("distance", [l1, l2, pseudo_huber])
def test_a_distance_is_zero_at_equality_symmetric_and_float32_for_half_precision(distance, generator):
    prediction, target = torch.randn(2, 4, 3, generator=generator).half()
    assert distance(prediction, prediction) == 0
    assert distance(prediction, target) == distance(target, prediction)
    assert distance(prediction, target).dtype == torch.float32


@pytest.mark.parametrize("distance", [l1, l2, pseudo_huber])
def test_the_gradient_is_finite_where_prediction_and_target_are_equal(distance):
    prediction = torch.ones(3, requires_grad=True)
    distance(prediction, torch.ones(3)).backward()
    assert torch.equal(prediction.grad, torch.zeros(3))


def images(generator, size=(8, 8), count=2):
    return torch.rand(2, count, 3, *size, generator=generator) * 2 - 1


def test_multi_scale_is_the_mean_over_halved_images(generator):
    prediction, target = images(generator)
    total = 0
    for size in (8, 4, 2, 1):
        step = 8 // size
        difference = np.zeros((2, 3, size, size))
        for i in range(size):
            for j in range(size):
                place = (..., slice(i * step, (i + 1) * step), slice(j * step, (j + 1) * step))
                difference[..., i, j] = (prediction[place] - target[place]).mean((2, 3)).numpy()
        total += np.abs(difference).mean()
    assert multi_scale(prediction, target, 4).item() == pytest.approx(total / 4, rel=1e-5)


def test_multi_scale_of_one_level_is_the_distance_and_of_a_change_of_colour_too(generator):
    prediction, target = images(generator)
    assert torch.equal(multi_scale(prediction, target, 1), l1(prediction, target))
    torch.testing.assert_close(multi_scale(prediction + 0.3, prediction, 3), torch.tensor(0.3))


def test_multi_scale_forgives_what_is_finer_than_its_coarse_levels():
    checks = 1.0 - 2 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).expand(1, 3, 8, 8)
    assert multi_scale(checks, torch.zeros(1, 3, 8, 8), 4).item() == pytest.approx(1 / 4)


def test_multi_scale_takes_odd_edges_and_refuses_more_levels_than_there_are(generator):
    prediction, target = images(generator, (5, 9))
    assert multi_scale(prediction, target, 3) > 0
    for levels in (0, 4):
        with pytest.raises(ValueError, match=f"levels {levels}: expects from 1 to 3 for images of 9x5"):
            multi_scale(prediction, target, levels)


@pytest.fixture(scope="module")
def reference():
    """LPIPS of random weights, by its authors' code."""
    theirs = pytest.importorskip("lpips").LPIPS
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = theirs(net="squeeze", pretrained=False, pnet_rand=True, verbose=False).eval().requires_grad_(False)
    return network, lambda x: network.net(network.scaling_layer(x))


def test_perceptual_without_weights_is_the_baseline_of_lpips(reference, generator):
    network, features = reference
    prediction, target = images(generator, (32, 32))
    network.lpips = False
    expected = network(prediction, target).mean()
    network.lpips = True
    torch.testing.assert_close(perceptual(prediction, target, features), expected, rtol=1e-4, atol=1e-8)


def perceptual(prediction, target, features):
    return perceptual_distance(features(prediction), features(target))


def two_layers(x):
    """A map (B, 3, h, w) and a vector (B, 3): features of any network."""
    return [x.relu(), 2 * x.mean((2, 3))]


def test_perceptual_of_known_features():
    """At one place (3, 4) against (4, 3): of length 1 their squared distance is 2 / 25."""
    prediction, target = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([4.0, 3.0]).view(1, 2, 1, 1)
    assert perceptual(prediction, target, lambda x: [x]).item() == pytest.approx(2 / 25)
    assert perceptual(prediction, target, lambda x: [5 * x]).item() == pytest.approx(2 / 25)


def test_perceptual_has_finite_gradients_where_all_features_of_a_place_are_dead(generator):
    prediction, target = images(generator)
    prediction[:, :, :4] = -1  # dead after the rectifier, a length of 0
    prediction.requires_grad_()
    perceptual(prediction, target, lambda x: [x.relu()]).backward()
    assert prediction.grad.isfinite().all()
    assert prediction.grad.abs().max() < 100
    assert prediction.grad.abs().sum() > 0


def test_perceptual_hardly_pulls_from_features_that_are_all_zero(generator):
    prediction, target = torch.zeros(2, 3, 8, 8, requires_grad=True), images(generator)[1]
    value = perceptual(prediction, target, lambda x: [x])
    value.backward()
    assert value.item() == pytest.approx(1)  # of directions against none
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))  # not 1 over a length of almost 0


def test_perceptual_computes_in_float32_whatever_the_network_gives(generator):
    prediction, target = (300 * images(generator)).half()  # whose squares are beyond float16
    value = perceptual(prediction, target, lambda x: [x])
    assert torch.equal(value, perceptual(prediction.float(), target.float(), lambda x: [x]))
    assert value.isfinite()


def test_perceptual_goes_through_the_feature_network_to_the_images(generator):
    network = nn.Conv2d(3, 4, 3).requires_grad_(False)
    prediction, target = images(generator)
    prediction.requires_grad_()
    perceptual(prediction, target, lambda x: [network(x)]).backward()
    assert (prediction.grad != 0).any(3).all()


@pytest.mark.parametrize("distance", [multi_scale, lambda p, t: perceptual(p, t, two_layers)])
def test_distances_of_images_are_zero_at_equality_float32_and_the_same_for_a_doubled_batch(distance, generator):
    prediction, target = images(generator).half()
    value = distance(prediction, target)
    assert distance(prediction, prediction) == 0
    assert value == distance(target, prediction)
    assert value.dtype == torch.float32
    torch.testing.assert_close(distance(prediction.repeat(2, 1, 1, 1), target.repeat(2, 1, 1, 1)), value)


def test_images_of_other_shapes_are_refused():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"prediction \(2, 3, 4, 4\): expects the shape it is compared with, \(1, 3, 4, 4\)"):
        multi_scale(x, x[:1])
