import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import upfirdn

from gendistill.gan.architectures.stylegan2_layers import (
    Blur,
    EqualisedConv2d,
    EqualisedLinear,
    ModulatedConv,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def grouped(layer, x, w):
    """The paper's form: weights of its own for each image (eq. 1-3), and one convolution of B groups."""
    up = isinstance(layer.conv, torch.nn.ConvTranspose2d)
    weight = layer.conv.weight.transpose(0, 1) if up else layer.conv.weight
    weight = weight[None] * layer.scale * layer.style(w)[:, None, :, None, None]
    if layer.demodulate:
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    batch, out_channels, channels, kernel, _ = weight.shape
    x = x.reshape(1, batch * channels, *x.shape[2:])
    if up:
        weight = weight.transpose(1, 2).reshape(batch * channels, out_channels, kernel, kernel)
        return layer.blur(F.conv_transpose2d(x, weight, stride=2, groups=batch).unflatten(1, (batch, -1))[0]) * 4
    weight = weight.reshape(batch * out_channels, channels, kernel, kernel)
    return F.conv2d(x, weight, padding=kernel // 2, groups=batch).unflatten(1, (batch, -1))[0]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_is_the_papers_grouped_one(kernel, demodulate):
    layer = ModulatedConv(5, 7, kernel, 4, demodulate=demodulate).double()
    x, w = torch.randn(3, 5, 6, 9).double(), torch.randn(3, 4).double()
    torch.testing.assert_close(layer(x, w), grouped(layer, x, w))


@pytest.mark.parametrize("demodulate", [True, False])
def test_a_modulated_convolution_that_doubles_is_the_papers_grouped_one(demodulate):
    layer = ModulatedConv(5, 7, 3, 4, up=True, demodulate=demodulate).double()
    x, w = torch.randn(3, 5, 6, 9).double(), torch.randn(3, 4).double()
    assert layer(x, w).shape == (3, 7, 12, 18)
    torch.testing.assert_close(layer(x, w), grouped(layer, x, w))


def test_doubling_is_the_filtered_image_convolved_away_from_its_border():
    layer = ModulatedConv(5, 7, 3, 4, up=True).double()
    x, w = torch.randn(3, 5, 8, 8).double(), torch.randn(3, 4).double()
    style = layer.style(w) * layer.scale
    kernel = layer.conv.weight.transpose(0, 1).flip(2, 3)
    expected = F.conv2d(Blur("up").double()(x * style[:, :, None, None]), kernel, padding=1)
    expected = expected * layer.demodulation(style)[:, :, None, None]
    torch.testing.assert_close(layer(x, w)[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2])


def test_the_gradients_of_both_forms_are_equal():
    layer = ModulatedConv(5, 7, 3, 4).double()
    x, w = torch.randn(3, 5, 6, 6).double().requires_grad_(), torch.randn(3, 4).double().requires_grad_()
    seen = [x, w, *layer.parameters()]
    plain, papers = (
        torch.autograd.grad(made.square().mul(0.5).sin().sum(), seen) for made in (layer(x, w), grouped(layer, x, w))
    )
    for a, b in zip(plain, papers, strict=True):
        torch.testing.assert_close(a, b)


def test_demodulated_features_do_not_depend_on_the_size_of_the_style():
    layer = ModulatedConv(5, 7, 3, 4).double()
    x, w = torch.randn(3, 5, 6, 6).double(), torch.randn(3, 4).double()
    made = layer(x, w)
    layer.style.weight.data *= 10
    layer.style.bias.data *= 10
    torch.testing.assert_close(layer(x, w), made, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fan_in", [4, 100, 900])
def test_an_equalised_layer_keeps_the_variance_of_its_input(fan_in):
    x = torch.randn(500, fan_in)
    made = [EqualisedLinear(fan_in, 500)(x), EqualisedLinear(fan_in, 500, rate=0.01)(x)]
    made.append(EqualisedConv2d(fan_in, 500, 1)(x[:, :, None, None]))
    for y in made:
        assert y.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("fan_in", "rate"), [(4, 1.0), (100, 1.0), (900, 1.0), (100, 0.01)])
def test_a_step_of_adam_changes_every_weight_in_the_same_proportion_whatever_the_fan_in(fan_in, rate):
    layer = EqualisedLinear(fan_in, 50, rate=rate)
    # The weight of the plain layer that it stands for, whose deviation at the start is 1 / sqrt(fan-in).
    plain = layer(torch.eye(fan_in)).detach()
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    layer(torch.randn(8, fan_in)).square().sum().backward()
    optimizer.step()
    layer.bias.data.zero_()
    change = (layer(torch.eye(fan_in)).detach() - plain).abs() * math.sqrt(fan_in)
    torch.testing.assert_close(change, torch.full_like(change, 1e-3 * rate), rtol=0.05, atol=1e-6)


def test_the_bias_of_a_style_begins_at_what_it_was_given():
    assert torch.equal(EqualisedLinear(3, 2, bias=1.0)(torch.zeros(1, 3)), torch.ones(1, 2))
    torch.testing.assert_close(EqualisedLinear(3, 2, bias=1.0, rate=0.01)(torch.zeros(1, 3)), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("mode", "padding", "up", "down"), [("up", 1, 2, 1), ("down", 1, 1, 2), ("same", 1, 1, 1), ("same", 2, 1, 1)]
)
def test_a_blur_is_scipys_filter_in_both_directions(mode, padding, up, down):
    x = torch.randn(2, 3, 6, 10).double()
    line = np.array([1, 3, 3, 1]) / 8 * up
    expected = x.numpy()
    for axis in (2, 3):
        # The whole convolution is 3 longer than its input: 3 - padding are cut from each end, and then every second is left.
        whole = upfirdn(line, expected, up=up, axis=axis)
        cut = 3 - padding if up == 1 else 1
        length = {"up": 2, "down": 1, "same": 1}[mode] * x.shape[axis] + (2 * padding - 3 if up == 1 else 0)
        expected = np.take(whole, range(cut, cut + length, down), axis=axis)
    torch.testing.assert_close(Blur(mode, padding).double()(x), torch.from_numpy(expected))


@pytest.mark.parametrize("mode", ["up", "down"])
def test_a_constant_image_stays_itself_inside(mode):
    made = Blur(mode)(torch.full((1, 2, 8, 8), 0.7))
    assert made.shape[2:] == {"up": (16, 16), "down": (4, 4)}[mode]
    torch.testing.assert_close(made[:, :, 1:-1, 1:-1], torch.full_like(made[:, :, 1:-1, 1:-1], 0.7))
