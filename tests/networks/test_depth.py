"""Whole residual blocks are found, measured and removed, and a shallower network opens again."""

from __future__ import annotations

import pytest
import torch
from image_generators import RRDBNet
from torch import nn

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.gan.architectures.rrdb import RRDBGenerator
from gendistill.gan.architectures.translation import ResNetTranslator
from gendistill.networks.pruning import pruned_architecture
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.depth import blocks_to_keep, blocks_to_remove, measurements, residual_blocks
from gendistill.networks.pruning.prune import compress

IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Group(nn.Module):
    """A residual group of residual blocks and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResNetTranslator(channels=4, num_blocks=3, num_down=0).layers[3:6])
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, strength=1.0):
        y = x
        for block in self.blocks:
            y = block(y)
        return x + strength * self.conv(y)


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.groups = nn.ModuleList([Group(), Group()])

    def forward(self, x):
        x = self.first(x)
        for group in self.groups:
            x = group(x, strength=0.5)
        return self.last(x)


def test_blocks_that_add_to_their_input_are_found_in_any_network() -> None:
    assert residual_blocks(RRDBGenerator(channels=4, growth=2, num_blocks=5), (IMAGES,)) == [f"body.{k}" for k in range(5)]
    assert residual_blocks(RRDBNet(5, 4, 2), (IMAGES,)) == [f"body.{k}" for k in range(5)]
    translator = ResNetTranslator(channels=4, num_blocks=4, num_down=1)
    assert residual_blocks(translator, (IMAGES,)) == [f"layers.{k}" for k in range(6, 10)]
    groups = [f"groups.{k}.blocks.{n}" for k in range(2) for n in range(3)]  # two groups are opened
    assert residual_blocks(Groups(), (IMAGES,)) == groups
    labelled = (torch.zeros(2, 8), torch.tensor([0, 1]))
    assert residual_blocks(ResNetGenerator(8, 2, (8, 8, 8, 4), class_dim=4), labelled) == []  # each changes the resolution


def test_the_blocks_that_change_the_output_least_are_removed() -> None:
    torch.manual_seed(0)
    network = RRDBGenerator(channels=8, growth=4, num_blocks=6)
    for block, strength in zip(network.body, (0, 9, 0.1, 9, 9, 0.2), strict=True):
        for dense in block.blocks:
            dense.convs[-1].weight.data *= strength
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    measured: list[int] = []
    blocks = residual_blocks(network, (IMAGES,))
    removed = blocks_to_remove(network, blocks, 3, [(IMAGES,)], measured.append)
    assert list(removed) == ["body.0", "body.2", "body.5"]
    assert sum(measured) == measurements(6, 3) == 6 + 5 + 4
    assert removed["body.0"] == pytest.approx(1.2, abs=0.05)  # x + 0.2 x: three dense blocks that add nothing
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    first = blocks_to_remove(network, blocks, 5, [(IMAGES,)])
    shallower = pruned_architecture.duplicate(network)
    pruned_architecture.remove_blocks(shallower, first)
    torch.testing.assert_close(shallower(IMAGES), network(IMAGES), atol=0.01, rtol=0.01)


def test_depth_and_width_together_meet_the_targets_and_the_student_opens_again() -> None:
    torch.manual_seed(0)
    arguments = {"channels": 8, "growth": 8, "num_blocks": 6}
    network = RRDBGenerator(**arguments)
    removed = blocks_to_remove(network, residual_blocks(network, (IMAGES,)), 2, [(IMAGES,)])
    assert len(removed) == 4
    compressed = compress(network, (IMAGES,), factor=6, removed=removed)
    assert compressed.teacher_macs / compressed.macs == pytest.approx(6, rel=0.1)
    assert compressed.teacher_parameters / compressed.parameters == pytest.approx(6, rel=0.1)
    shapes = pruned_architecture.record(compressed.network)
    assert shapes["removed"] == removed
    opened = pruned_architecture.apply(RRDBGenerator(**arguments), shapes)
    opened.load_state_dict(compressed.network.state_dict())
    assert torch.equal(opened(IMAGES), compressed.network(IMAGES))
    assert pruned_architecture.record(pruned_architecture.apply(opened, shapes)) == shapes


def test_a_record_of_removed_blocks_is_checked() -> None:
    network = RRDBGenerator(channels=4, growth=2, num_blocks=2)
    shapes = pruned_architecture.record(network)
    assert "removed" not in shapes
    for removed, message in (
        ({"body.7": 1.0}, "removed: the network has no module body.7"),
        ({"body.0": "x"}, "removed body.0: expects a number"),
        ({"body.0": float("nan")}, "removed body.0: expects a number"),
        ([], "removed: expects an object"),
    ):
        with pytest.raises(ValueError, match=message):
            pruned_architecture.apply(network, shapes | {"version": 2, "removed": removed})


def test_the_number_of_blocks_follows_from_the_setting() -> None:
    assert [blocks_to_keep(23, "auto", factor) for factor in (2, 4, 10, 100)] == [13, 7, 3, 1]
    assert blocks_to_keep(9, "auto", 10) == 9
    assert [blocks_to_keep(23, depth, 10) for depth in (0.0, 0.5, 0.99)] == [23, 12, 1]
    assert CompressConfig(factor=4).depth == "auto"
    assert CompressConfig.model_validate({"factor": 4, "depth": 0.5}).depth == 0.5
    with pytest.raises(ValueError, match=r"compress\.depth 1: expects a fraction"):
        CompressConfig(factor=4, depth=1.0)
