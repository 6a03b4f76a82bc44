"""Depthwise-separable convolutions in place of dense ones."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gendistill.networks.counting import macs, parameters
from gendistill.networks.pruning import pruned_architecture as slim
from gendistill.networks.pruning.prune import compress
from gendistill.networks.pruning.separable import SeparableConv2d, replaceable, saved_fraction


def test_a_kernel_that_is_separable_is_found_exactly() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(5, 7, 3, stride=2, padding=1, padding_mode="reflect").double()
    with torch.no_grad():
        dense.weight.copy_(torch.randn(7, 5, 1, 1).double() * torch.randn(1, 5, 3, 3).double())
    x = torch.randn(2, 5, 9, 9).double()
    torch.testing.assert_close(SeparableConv2d.nearest(dense)(x), dense(x))


def test_no_separable_kernel_is_nearer_than_the_one_that_is_taken() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, 3, bias=False).double()

    def distance(separable: SeparableConv2d) -> float:
        made = separable.pointwise.weight * separable.depthwise.weight.transpose(0, 1)
        return float((made - dense.weight).square().sum().detach())

    found = SeparableConv2d.nearest(dense)
    best = distance(found)
    descended = SeparableConv2d.nearest(dense)
    optimizer = torch.optim.LBFGS(descended.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        made = descended.pointwise.weight * descended.depthwise.weight.transpose(0, 1)
        loss = (made - dense.weight).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert distance(descended) == pytest.approx(best, rel=1e-9)
    singular = torch.linalg.svdvals(dense.weight.detach().flatten(2).transpose(0, 1))
    assert best == pytest.approx(float(singular[:, 1:].square().sum()))


def test_the_saved_share_is_what_the_counter_counts() -> None:
    dense = nn.Conv2d(16, 24, 5, padding=2, bias=False)
    x = (torch.randn(1, 16, 8, 8),)
    before, after = macs(nn.Sequential(dense), x), macs(SeparableConv2d.nearest(dense), x)
    assert after == 64 * (16 * 25 + 16 * 24)
    assert 1 - after / before == pytest.approx(saved_fraction(dense))
    assert parameters(SeparableConv2d.nearest(dense)) == 16 * 25 + 16 * 24


def test_only_what_saves_can_be_replaced() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 3), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 4)
    )
    assert list(replaceable(network)) == ["0"]
    assert replaceable(network, keep=["0"]) == {}


class TrajectoryTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(F.relu(self.two(F.relu(self.one(x)))))


@pytest.mark.parametrize("factor", [2, 4, 12])
def test_a_student_of_separable_convolutions_meets_its_targets_and_is_rebuilt_from_its_record(factor: float) -> None:
    torch.manual_seed(0)
    teacher, x = TrajectoryTeacher(), torch.randn(2, 3, 8, 8)
    compressed = compress(teacher, (x,), factor=factor, depthwise=True)
    assert compressed.macs == pytest.approx(compressed.teacher_macs / factor, rel=0.1)
    assert compressed.parameters == pytest.approx(compressed.teacher_parameters / factor, rel=0.1)
    assert any(isinstance(layer, SeparableConv2d) for layer in compressed.network.modules())
    rebuilt = slim.apply(TrajectoryTeacher(), json.loads(json.dumps(slim.record(compressed.network))))
    rebuilt.load_state_dict(compressed.network.state_dict())
    assert torch.equal(rebuilt(x), compressed.network(x))
