"""A smaller student of any generator, to given parameters and multiply-accumulates."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unseen_generators import UNSEEN, Unseen

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.networks import counting
from gendistill.networks.pruning import pruned_architecture
from gendistill.networks.pruning.channels import ChannelGroup, channel_groups
from gendistill.networks.pruning.layers import get_module
from gendistill.networks.pruning.prune import Compressed, compress, recalibrate
from gendistill.networks.pruning.surgery import choose, prune

LABELLED = (torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 4]))


def teacher() -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(32, 5, (64, 48, 32, 24), class_dim=16)


def meets(compressed: Compressed, factor: float) -> bool:
    costs = (compressed.macs, compressed.teacher_macs), (compressed.parameters, compressed.teacher_parameters)
    return all(abs(small * factor / large - 1) <= 0.1 for small, large in costs)


def changes(one: Tensor, other: Tensor) -> float:
    """The correlation of how images (B, C, H, W) of one network and the other differ from their mean."""
    return float(torch.corrcoef(torch.stack([(x - x.mean(0)).flatten() for x in (one, other)]).detach())[0, 1])


def test_macs_and_parameters_are_those_of_the_formulas() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(8 * 16, 10)
    )
    x = torch.randn(5, 3, 4, 4)
    by_module = {"0": 16 * 8 * 3 * 9, "1": 16 * 8 * 9, "3": 128 * 10}
    assert counting.macs_by_module(layers, (x,)) == by_module
    assert counting.macs(layers, (x,)) == sum(by_module.values())
    assert counting.parameters(layers) == (8 * 27 + 8) + (8 * 9 + 8) + (1280 + 10)


def test_a_shared_weight_is_counted_once() -> None:
    one = nn.Linear(4, 4, bias=False)
    assert counting.parameters(nn.Sequential(one, nn.ReLU(), one)) == 16


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda unseen: unseen.module)
def test_an_unseen_generator_is_compressed_to_both_targets_and_learns(unseen: Unseen, tmp_path: Path) -> None:
    network, inputs = unseen.build(tmp_path), unseen.inputs()
    compressed = compress(network, inputs, factor=4)
    assert meets(compressed, 4)
    assert (compressed.macs, compressed.parameters) == (
        counting.macs(compressed.network, inputs),
        counting.parameters(compressed.network),
    )
    output = compressed.network(*inputs)
    assert output.shape == (2, *unseen.output_shape)
    output.square().mean().backward()
    assert all(weight.grad is not None for weight in compressed.network.parameters())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_residual_generator_meets_both_targets(factor: float) -> None:
    compressed = compress(teacher(), LABELLED, factor=factor)
    assert meets(compressed, factor)
    assert compressed.network(*LABELLED).shape == (2, 3, 32, 32)
    assert compressed.not_pruned == {}


def test_one_target_alone_is_met() -> None:
    assert compress(teacher(), LABELLED, params=70_000).parameters == pytest.approx(70_000, rel=0.1)
    assert compress(teacher(), LABELLED, macs=4e6).macs == pytest.approx(4e6, rel=0.1)


def test_both_numbers_are_met_together() -> None:
    compressed = compress(teacher(), LABELLED, params=80_000, macs=5e6)
    assert (compressed.parameters, compressed.macs) == pytest.approx((80_000, 5e6), rel=0.1)


def test_the_teacher_stays_as_it_was() -> None:
    network = teacher()
    network.blocks[0].eval()
    network.out.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    grads = [weight.requires_grad for weight in network.parameters()]
    student = compress(network, LABELLED, factor=4).network
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes == [module.training for module in student.modules()]
    assert [weight.requires_grad for weight in network.parameters()] == grads
    assert [weight.requires_grad for weight in student.parameters()] == grads


def test_the_same_call_gives_the_same_student() -> None:
    for importance in ("magnitude", "random"):
        one, other = (compress(teacher(), LABELLED, factor=4, importance=importance, seed=3).network for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def weakened(network: nn.Module, inputs: tuple[Tensor, ...], strength: Any) -> list[ChannelGroup]:
    """Scale what reads channel c of every group by strength(c / size), c in an order sampled by chance."""
    groups = [group for group in channel_groups(copy.deepcopy(network), inputs) if not group.frozen]
    with torch.no_grad():
        for group in groups:
            scale = strength(torch.randperm(group.size) / group.size)
            for side, indices in group.members.items():
                layer: Any = get_module(network, side.path)
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    shape = (
                        [-1, *[1] * (layer.weight.ndim - 1)] if side.side == "out" else [1, -1, *[1] * (layer.weight.ndim - 2)]
                    )
                    full = torch.ones(layer.weight.shape[int(side.side == "in")])
                    full[torch.from_numpy(indices)] = scale[:, None].expand(indices.shape)
                    layer.weight.mul_(full.reshape(shape))
                    if side.side == "out" and layer.bias is not None:
                        layer.bias.mul_(full)
    return groups


def test_channels_that_do_nothing_go_first_and_the_images_stay() -> None:
    network = teacher().eval()
    weakened(network, LABELLED, lambda place: (place < 0.25).float())  # every fourth channel lives
    student = compress(network, LABELLED, factor=4).network
    torch.testing.assert_close(student(*LABELLED), network(*LABELLED))


def test_a_student_of_the_important_channels_samples_as_its_teacher_and_a_random_one_does_not() -> None:
    network = teacher().eval()
    weakened(network, LABELLED, lambda place: torch.exp(-6 * place))
    inputs = (torch.randn(16, 32), torch.arange(16) % 5)
    wanted = network(*inputs)
    chosen, generated = (compress(network, LABELLED, factor=4, importance=kind).network for kind in ("magnitude", "random"))
    fresh = copy.deepcopy(chosen)
    for layer in fresh.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    near, by_chance, new = (changes(student(*inputs), wanted) for student in (chosen, generated, fresh))
    assert near > 0.95
    assert near > max(by_chance, new) + 0.1


@pytest.mark.parametrize("k", range(3), ids=[unseen.module for unseen in UNSEEN])
def test_a_network_without_channels_equals_the_one_that_does_not_read_them(k: int, tmp_path: Path) -> None:
    """The oracle of the channel groups: what is taken out of all layers is what no layer would see."""
    unseen = UNSEEN[k]
    network, inputs = unseen.build(tmp_path).eval(), unseen.inputs()
    for group in channel_groups(copy.deepcopy(network), inputs):
        norms = [get_module(network, side.path) for side in group.members]
        if group.frozen or any(isinstance(norm, nn.GroupNorm) for norm in norms):
            continue  # a group norm sees all channels of its group
        keep = choose(torch.rand(group.size).numpy(), group.size // 2, group.blocks)
        gone = [c for c in range(group.size) if c not in keep]
        blind, pruned = copy.deepcopy(network), copy.deepcopy(network)
        with torch.no_grad():
            for side, indices in group.members.items():
                layer: Any = get_module(blind, side.path)
                if side.side == "in":
                    weight = layer.weight if isinstance(layer, nn.ConvTranspose2d) else layer.weight.transpose(0, 1)
                    weight[indices[gone].ravel()] = 0
        prune(pruned, [group], [keep])
        torch.testing.assert_close(pruned(*inputs), blind(*inputs), msg=group.name)


def test_all_layers_of_the_unseen_networks_are_in_a_group(tmp_path: Path) -> None:
    for unseen in UNSEEN:
        network = unseen.build(tmp_path)
        sides = {side for group in channel_groups(copy.deepcopy(network), unseen.inputs()) for side in group.members}
        layers = [path for path, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
        assert {path for path in layers if (path, "out") not in sides} == set()


def test_wide_layers_get_widths_that_are_multiples_of_eight() -> None:
    network = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())])
    network = nn.Sequential(nn.Conv2d(3, 64, 1), *network, nn.Conv2d(64, 3, 1))
    student = compress(network, (torch.randn(1, 3, 8, 8),), factor=4).network
    widths = [layer.out_channels for layer in student if isinstance(layer, nn.Conv2d)][:-1]
    assert all(width % 8 == 0 for width in widths)
    assert min(widths) < 64


def test_what_is_to_keep_keeps_its_channels() -> None:
    student = compress(teacher(), LABELLED, macs=6e6, keep=["blocks.1.conv1"]).network
    assert student.blocks[1].conv1.weight.shape == teacher().blocks[1].conv1.weight.shape


def test_recalibration_gives_the_statistics_of_all_batches() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5)).train()
    batches = [torch.randn(16, 3, 4, 4) for _ in range(3)]
    recalibrate(network, [(batch,) for batch in batches])
    means = torch.stack([network[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([network[0](batch).var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(network[1].running_mean, means.detach())
    torch.testing.assert_close(network[1].running_var, variances.detach())
    assert network[1].momentum == 0.3
    assert all(module.training for module in network.modules())


def test_faster_than_the_teacher_by_its_multiply_accumulates(tmp_path: Path) -> None:
    """No clock: the widths shrink in every layer of the teacher that is costly, so that none stays to be waited for."""
    network, inputs = teacher(), LABELLED
    before, after = (counting.macs_by_module(net, inputs) for net in (network, compress(network, inputs, factor=4).network))
    costly = [path for path, count in before.items() if count > 0.1 * sum(before.values())]
    assert costly
    assert all(after[path] < 0.6 * before[path] for path in costly)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"factor": 0.5}, "compress 0.5: expects more than 1"),
        ({"factor": 1}, "compress 1: expects more than 1"),
        ({"factor": -4}, "compress -4: expects more than 1"),
        ({"factor": math.nan}, "compress nan: expects more than 1"),
        ({"factor": math.inf}, "compress inf: expects more than 1"),
        ({"factor": 4, "macs": 1e6}, "compress 4: got params or macs too; expects only one kind of target"),
        ({}, "compress: expects a factor, params or macs; got none"),
        ({"params": 0}, "params 0: expects more than 0 and less than the teacher's"),
        ({"macs": 1e12}, r"macs 1e\+12: expects more than 0 and less than the teacher's"),
        ({"factor": 4, "importance": "gold"}, "importance gold: expects magnitude or random"),
        ({"factor": 4, "keep": ["block.7"]}, "keep block.7: the network has no such module"),
        (
            {"factor": 3000},
            "compress 3000: the nearest that can be reached is .*, as its layers have few channels "
            "\\(none gets fewer than 4\\); give .*",
        ),
        ({"factor": 4, "keep": ["blocks"]}, "compress: keep leaves no channels that could be removed"),
    ],
)
def test_a_wrong_target_is_told_in_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        compress(teacher(), LABELLED, **arguments)
    assert "\n" not in str(caught.value)


def test_inputs_that_the_network_does_not_take_are_told_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="ResNetGenerator does not run on the example inputs: "):
        compress(teacher(), (torch.randn(2, 31), torch.tensor([0, 1])), factor=4)


class Attention(nn.Module):
    """Heads of C / heads channels, C read from the input: what comes in and what is made of it shrink together only."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(8, channels), heads
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.qkv(self.norm(x)).chunk(3, 1)
        q, k, v = (part.reshape(b, self.heads, c // self.heads, h * w).transpose(2, 3) for part in parts)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w))


class Gated(nn.Module):
    """Gates by halves, a squeeze by means, groups, depthwise kernels, a layer norm over channels that come last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.twice, self.groups = (
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, 1, 1, groups=4),
        )
        self.squeeze, self.excite = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)
        self.deep, self.norm = nn.Conv2d(channels, channels, 5, 1, 2, groups=channels), nn.LayerNorm(channels)
        self.spot = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.groups(F.glu(self.twice(x), 1))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))[:, :, None, None]
        y = y * torch.sigmoid(self.spot(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)))
        return x + self.norm(self.deep(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Awkward(nn.Module):
    def __init__(self, middle: nn.Module, channels: int) -> None:
        super().__init__()
        self.channels, self.middle = channels, middle
        self.start = nn.Linear(16, channels * 16)
        self.up, self.grow = nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.generate = nn.Conv2d(channels + 2, 3, 3, padding=1)
        self.register_buffer("places", torch.randn(1, 2, 16, 16))

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.up(self.start(z).view(-1, self.channels, 4, 4)))
        b, c, h, w = (x := self.grow(x)).shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        return self.generate(torch.cat([self.places.expand(b, -1, -1, -1), F.relu(x)], 1))


@pytest.mark.parametrize("middle", [Attention(64, 4), Gated(32)], ids=["attention", "gates"])
def test_awkward_operations_are_followed(middle: nn.Module) -> None:
    torch.manual_seed(0)
    network = Awkward(middle, 64 if isinstance(middle, Attention) else 32)
    z = torch.randn(2, 16)
    compressed = compress(network, (z,), factor=4)
    assert meets(compressed, 4)
    assert compressed.network(z).shape == (2, 3, 16, 16)
    rebuilt = pruned_architecture.apply(copy.deepcopy(network), pruned_architecture.record(compressed.network))
    rebuilt.load_state_dict(compressed.network.state_dict())
    assert torch.equal(rebuilt(z), compressed.network(z))


class Still(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Repeated(nn.Module):
    """One convolution twice, called by keyword, its input changed in place, and a norm that passes on what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.conv = nn.Linear(16, 32 * 16), nn.Conv2d(32, 32, 3, padding=1)
        self.still, self.generate = Still(32, 32), nn.Conv2d(32, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z.mul_(2)).view(-1, self.conv.in_channels, 4, 4)
        for _ in range(2):
            x = self.conv(input=x).relu_()
        return self.generate(self.still(x))


def test_layers_that_run_twice_by_keyword_or_do_nothing_are_followed() -> None:
    student = compress(Repeated(), (torch.randn(2, 16),), macs=100_000).network
    width = student.conv.out_channels
    assert width < 32
    assert (student.conv.in_channels, student.start.out_features) == (width, 16 * width)
    assert (student.still.num_channels, student.generate.in_channels) == (width, width)
    assert student(torch.randn(2, 16)).shape == (2, 3, 4, 4)


class Literal64(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.convs = nn.Linear(16, 64 * 16), nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.convs(self.start(z).view(-1, 64, 4, 4))


def test_a_width_written_into_the_forward_is_kept_and_named_where_the_target_is_missed() -> None:
    z = torch.randn(2, 16)
    compressed = compress(Literal64(), (z,), macs=100_000)
    assert compressed.network.start.out_features == 1024
    assert list(compressed.not_pruned) == ["start"]
    with pytest.raises(ValueError, match=r"nearest .*; start is not pruned \(.*64, 4, 4.*\); give .*--student module:Class"):
        compress(Literal64(), (z,), factor=4)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.generate = nn.LSTM(16, 48), nn.Linear(48, 48)

    def forward(self, z: Tensor) -> Tensor:
        return self.generate(self.cell(z[None])[0][0]).view(-1, 3, 4, 4)


def test_a_network_that_cannot_be_followed_names_the_layer_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"cell: the channels of a LSTM are never pruned.*--student module:Class"):
        compress(Recurrent(), (torch.randn(2, 16),), factor=4)
