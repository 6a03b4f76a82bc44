"""8 bits by torchao, on a CPU here: the numbers are those that were meant. `make test-slow` installs it, aside."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gendistill.samplers import FewStepSampler
from gendistill.samplers.quantization.int8_torchao import to_int8_by_torchao

pytestmark = pytest.mark.slow  # diffusers and torch print warnings, in every process, where torchao is there


@pytest.fixture(autouse=True)
def torchao():
    return pytest.importorskip("torchao")


@torch.no_grad()
def test_each_row_and_each_channel_has_its_own_scale_and_convolutions_are_as_they_were(generator):
    network = nn.ModuleDict(
        {"linear": nn.Linear(64, 32), "convolution": nn.Conv2d(4, 4, 3), "time_embedding": nn.Linear(64, 32)}
    )
    network["linear"].bias.zero_()
    network["linear"].weight.mul_(torch.logspace(-2, 2, 32).unsqueeze(1))
    before = copy.deepcopy(network)
    to_int8_by_torchao(network)
    x = torch.randn(40, 64, generator=generator) * torch.logspace(-2, 2, 40).unsqueeze(1)
    made, wanted = network["linear"](x), before["linear"](x)
    for dim in (0, 1):
        lost = (made - wanted).norm(dim=dim) / wanted.norm(dim=dim)
        assert lost.min() > 0
        assert lost.max() < 0.03
    torch.testing.assert_close(network["linear"](x[20:]), made[20:], atol=0, rtol=1e-5)
    assert torch.equal(network["time_embedding"](x), before["time_embedding"](x))
    assert torch.equal(network["convolution"].weight, before["convolution"].weight)


@torch.no_grad()
def test_what_comes_in_has_8_bits_too(generator):
    network = nn.ModuleDict({"copies": nn.Linear(1024, 1024, bias=False)})
    network["copies"].weight.copy_(torch.eye(1024))
    to_int8_by_torchao(network)
    rows = network["copies"](torch.randn(20, 1024, generator=generator))
    assert all(100 < len(row.unique()) <= 256 for row in rows)


@torch.no_grad()
def test_images_are_nearly_the_same_ones_told_apart_and_counted_as_others_are(tiny_folder):
    plain, coarse = (FewStepSampler.from_pretrained(tiny_folder) for _ in range(2))
    to_int8_by_torchao(coarse.pipeline.unet)
    generated, counted = [], []
    for sampler in (plain, coarse):
        with FlopCounterMode(display=False) as counter:
            generated.append(torch.cat(list(sampler.images(["a", "b"], [0, 1], num_inference_steps=2, guidance_scale=1))))
        counted.append(counter.get_total_flops())
    assert 0 < (generated[0] - generated[1]).abs().mean() < 0.02
    assert counted[0] == counted[1]
    assert (plain.quantization, coarse.quantization) == ("none", "int8")
    assert plain.weights_hash != coarse.weights_hash
    other = FewStepSampler.from_pretrained(tiny_folder)
    next(layer for path, layer in other.pipeline.unet.named_modules() if path.endswith("to_q")).weight.mul_(-1)
    to_int8_by_torchao(other.pipeline.unet)
    assert other.weights_hash != coarse.weights_hash


def test_a_network_in_8_bits_moves_as_a_whole(tiny_folder):
    network = FewStepSampler.from_pretrained(tiny_folder).pipeline.unet
    to_int8_by_torchao(network)
    network.to("meta")
    assert all(weight.is_meta for weight in network.parameters())
