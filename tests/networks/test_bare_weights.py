"""What no layer of torch's own does: bare weights in products and convolutions, fused kernels, shared modules."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.networks import counting
from gendistill.networks.pruning.channels import channel_groups
from gendistill.networks.pruning.layers import get_module
from gendistill.networks.pruning.prune import compress
from gendistill.networks.pruning.surgery import prune


class Fused(nn.Module):
    """Attention and recurrence by fused kernels, and a convolution that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cell = nn.MultiheadAttention(16, 4, batch_first=True), nn.LSTM(16, 16, batch_first=True)
        self.first, self.second = nn.Sequential(nn.Linear(16, 16)), nn.Sequential()
        self.second.append(self.first[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0] + F.scaled_dot_product_attention(x, x, x)
        return self.second(self.first(self.cell(x)[0]))


def test_fused_attention_recurrence_and_shared_modules_are_counted() -> None:
    """The cost of 10 tokens of 16 channels: projections, products of queries and keys, and of the result with the values."""
    products = 2 * 10 * 10 * 16
    by_module = {"attention": 10 * 16 * 64 + products, "": products, "cell": 10 * 2 * 16 * 64, "first.0": 2 * 10 * 16 * 16}
    assert counting.macs_by_module(Fused(), (torch.randn(2, 10, 16),)) == by_module


class BareWeights(nn.Module):
    """A product, a transposed and a depthwise convolution with bare weights, scaled at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 24 * 16)), nn.Parameter(torch.zeros(24 * 16))
        self.up, self.deep = nn.Parameter(torch.randn(24, 16, 4, 4)), nn.Parameter(torch.randn(16, 1, 3, 3))
        self.last = nn.Parameter(torch.randn(3, 16, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = (z @ (0.1 * self.weight) + self.bias).view(z.shape[0], -1, 4, 4)
        x = F.conv_transpose2d(F.relu(x), 0.1 * self.up, stride=2, padding=1)
        return F.conv2d(F.conv2d(x, self.deep, padding=1, groups=self.deep.shape[0]), 0.1 * self.last)


def test_channels_of_bare_weights_are_removed_unless_they_are_to_keep() -> None:
    z = torch.randn(2, 8)
    network = BareWeights()
    for group in channel_groups(copy.deepcopy(network), (z,)):
        if not group.frozen:  # the oracle: channels that nothing reads can be removed
            blind, keep = copy.deepcopy(network), np.arange(group.size // 2)
            for side, indices in group.members.items():
                if side in (("up", "0"), ("last", "1")):
                    get_module(blind, side.path).data.index_fill_(int(side.side), torch.tensor(indices[len(keep) :].ravel()), 0)
            pruned = copy.deepcopy(network)
            prune(pruned, [group], [keep])
            torch.testing.assert_close(pruned(z), blind(z))
    student = compress(network, (z,), factor=4)
    assert student.not_pruned == {}
    assert (student.teacher_macs / student.macs, student.teacher_parameters / student.parameters) == pytest.approx(
        (4, 4), rel=0.1
    )
    assert compress(network, (z,), macs=50_000, keep=["deep"]).network.deep.shape == (16, 1, 3, 3)
