"""A network in 8 bits: the numbers are those that were meant, each image's whatever its batch is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gendistill.diffusion.int8_training import compute_as_int8, rounded_inputs, rounded_weight
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import network_of
from gendistill.samplers.quantization.int8 import Int8Layer, layers_in_8_bits, to_int8

LAYERS = {
    "linear": (nn.Linear(24, 10), (3, 7, 24)),
    "of one row": (nn.Linear(24, 10, bias=False), (3, 24)),
    "convolution": (nn.Conv2d(8, 6, 3, stride=2, padding=1), (3, 8, 9, 9)),
    "grouped": (nn.Conv2d(8, 4, 3, padding=2, dilation=2, groups=2), (3, 8, 9, 9)),
    "point-wise": (nn.Conv2d(8, 6, 1, bias=False), (3, 8, 5, 5)),
}


def by_hand(x, layer):
    """The formulas of the paper, one number at a time in float64, of one image."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    x = ((x.double() / scale + zero).round().clamp(0, 255) - zero) * scale
    weight = layer.weight.detach().double()
    steps = weight.abs().flatten(1).amax(1) / 127
    steps = steps.reshape(-1, *[1] * (weight.ndim - 1))
    weight = (weight / steps).round() * steps
    bias = None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_layer_in_8_bits_computes_what_the_formulas_say_and_training_sees_the_same(name, generator):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=generator) * torch.tensor([1.0, 5.0, 0.1]).reshape(3, *[1] * (len(shape) - 1)) + 0.3
    wanted = torch.cat([by_hand(of, layer) for of in x.split(1)]).float()
    torch.testing.assert_close(Int8Layer(layer)(x), wanted, atol=1e-4, rtol=1e-3)
    fake = nn.ModuleList([copy.deepcopy(layer)])
    compute_as_int8(fake)
    torch.testing.assert_close(fake[0](x), wanted, atol=1e-4, rtol=1e-3)
    assert (wanted - layer(x)).norm() < 0.03 * layer(x).norm()


@torch.no_grad()
def test_a_image_does_not_depend_on_its_batch(generator):
    layer = Int8Layer(LAYERS["convolution"][0])
    x = torch.randn(3, 8, 9, 9, generator=generator) * torch.tensor([1.0, 100.0, 0.01]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(layer(x)[2:], layer(x[2:]), atol=1e-6, rtol=1e-4)


def test_the_gradient_passes_the_rounding_and_goes_on_learning(generator):
    x = torch.randn(2, 24, generator=generator, requires_grad=True)
    weight = torch.randn(10, 24, generator=generator, requires_grad=True)
    (rounded_inputs(x).sum() + rounded_weight(weight).sum()).backward()
    assert (x.grad == 1).all()
    assert (weight.grad == 1).all()


def test_what_reads_the_time_and_the_first_and_last_layer_stay(tiny_folder):
    unet = UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    paths = [path for path, _ in layers_in_8_bits(unet)]
    assert any("to_q" in path for path in paths)
    assert any("conv1" in path for path in paths)
    assert not any("time" in path or "conv_in" in path or "conv_out" in path for path in paths)
    names = list(unet.state_dict())
    compute_as_int8(unet)
    assert list(unet.state_dict()) == names


@torch.no_grad()
def test_images_in_8_bits_are_nearly_the_same_ones_and_told_apart_from_them(tiny_folder):
    plain = FewStepSampler.from_pretrained(tiny_folder)
    coarse = FewStepSampler.from_pretrained(tiny_folder, quantization="int8")

    def generate(sampler, **more):
        return torch.cat(list(sampler.images(["a", "b"], [0, 1], num_inference_steps=2, guidance_scale=1, **more)))

    assert 0 < (generate(plain) - generate(coarse)).abs().mean() < 0.02
    # in other batches sums differ in their last bit, so that a few values are rounded the other way, and others after them
    assert (generate(coarse, batch_size=1) - generate(coarse, batch_size=2)).abs().mean() < 2e-3
    assert plain.weights_hash != coarse.weights_hash
    other = FewStepSampler.from_pretrained(tiny_folder)
    next(layer for _, layer in layers_in_8_bits(network_of(other.pipeline))).weight.data.mul_(-1)
    to_int8(network_of(other.pipeline))
    assert other.weights_hash != coarse.weights_hash


def test_what_torch_does_not_compile_is_one_sentence(tiny_folder):
    with pytest.raises(ValueError, match="--compile: expects no network in 8 bits on a CPU; expects --quantization none"):
        FewStepSampler.from_pretrained(tiny_folder, quantization="int8").compile()


@torch.no_grad()
def test_multiplications_in_8_bits_are_counted_as_others_are(tiny_folder):
    def flops(sampler):
        with FlopCounterMode(display=False) as counter:
            list(sampler.images(["a"], [0], num_inference_steps=1, guidance_scale=1))
        return counter.get_total_flops()

    plain, coarse = (FewStepSampler.from_pretrained(tiny_folder, quantization=kind) for kind in ("none", "int8"))
    assert flops(coarse) == flops(plain)
