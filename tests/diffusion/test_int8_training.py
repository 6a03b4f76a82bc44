"""Quantisation-aware training: layers are swapped in place, and learn to the bit what layers of another class would."""

import copy

import torch
from diffusers.models.downsampling import Downsample2D
from torch import nn

from gendistill.diffusion.int8_training import FakeInt8Conv2d, FakeInt8Linear, compute_as_int8
from gendistill.samplers.quantization.int8 import layers_in_8_bits


class Network(nn.Module):
    """Convolutions with and without a bias, strided, dilated and grouped, one of two names, and linear layers in a list."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.blocks = nn.ModuleList([wide, Downsample2D(8, use_conv=True)])
        self.linear = nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.0), nn.Linear(8, 4, bias=False)])

    def forward(self, x):
        h = self.blocks[1](torch.relu(self.blocks[0](self.conv_in(x)))).flatten(2).mT
        for layer in self.linear:
            h = layer(h)
        return h


def of_another_class(network):
    """The oracle: the same objects, whose class is another one."""
    for _, layer in layers_in_8_bits(network):
        layer.__class__ = FakeInt8Linear if isinstance(layer, nn.Linear) else FakeInt8Conv2d


def learned(make):
    """The state dict and the optimizer's after some steps, the losses, and torch's random numbers afterwards."""
    torch.manual_seed(0)
    network = Network().train()
    before = dict(network.named_parameters())
    make(network)
    assert {name: id(of) for name, of in network.named_parameters()} == {name: id(of) for name, of in before.items()}
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (network(torch.randn(4, 3, 8, 8)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network.state_dict(), average.state_dict(), optimizer.state_dict()["state"], losses, torch.get_rng_state()


def test_swapped_layers_learn_to_the_bit_what_layers_of_another_class_learn():
    swapped, wanted = learned(compute_as_int8), learned(of_another_class)
    assert list(swapped[0]) == list(Network().state_dict())
    torch.testing.assert_close(swapped, wanted, rtol=0, atol=0)
    assert swapped[3][-1] < swapped[3][0]


def test_a_layer_of_two_names_stays_one_layer_and_training_mode_stays():
    network = Network().eval()
    compute_as_int8(network)
    assert network.blocks[1].conv is network.blocks[1].Conv2d_0
    assert isinstance(network.blocks[1].conv, FakeInt8Conv2d)
    assert not any(layer.training for layer in network.modules())
    compute_as_int8(network)  # a later stage begins with the network of the stage before
    assert isinstance(network.linear[0], FakeInt8Linear)
    assert type(network.conv_in) is nn.Conv2d
