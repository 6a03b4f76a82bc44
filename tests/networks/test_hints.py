"""Layers are paired by resolution and depth, without being told which."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from unseen_generators import UNSEEN, Unseen

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.networks.hints import Hint, Regressors, candidates, describe, match, tap
from gendistill.networks.pruning.prune import compress

UNET = UNSEEN[0]


def resnet(channels: tuple[int, ...]) -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(16, 3, channels)


INPUTS = (torch.randn(2, 16), torch.tensor([0, 2]))


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda unseen: unseen.module)
def test_a_pruned_student_is_matched_by_the_paths_of_its_teacher(unseen: Unseen, tmp_path: Path) -> None:
    teacher = unseen.build(tmp_path)
    student = compress(teacher, unseen.inputs(), factor=4).network
    hints = match(teacher, student, unseen.inputs())
    assert 2 < len(hints) <= 6
    assert all(hint.teacher_path == hint.student_path for hint in hints)
    assert all(hint.teacher_shape[1:] == hint.student_shape[1:] for hint in hints)


def test_a_unet_is_matched_at_both_ends_of_its_skips(tmp_path: Path) -> None:
    teacher = UNET.build(tmp_path)
    paths = [hint.teacher_path for hint in match(teacher, teacher, UNET.inputs())]
    assert paths == ["down1", "down2", "middle", "join2", "join1"]


def test_blocks_are_matched_not_the_convolutions_in_them() -> None:
    hints = match(resnet((32, 24, 16, 8)), resnet((16, 12, 8, 8)), INPUTS)
    assert [hint.teacher_path for hint in hints] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [hint.teacher_shape for hint in hints] == [(24, 8, 8), (16, 16, 16), (8, 32, 32)]
    assert [hint.student_shape[0] for hint in hints] == [12, 8, 8]


def test_networks_of_other_classes_are_paired_by_resolution() -> None:
    def up(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [nn.Linear(16, 128), nn.Unflatten(1, (8, 4, 4)), *up(8, 8), *up(8, 6), *up(6, 4), nn.Conv2d(4, 3, 1), nn.Tanh()]
    teacher, student = ResNetGenerator(16, 0, (8, 8, 8, 8)), nn.Sequential(*layers)
    hints = match(teacher, student, (torch.randn(1, 16),))
    assert [hint.student_path for hint in hints] == ["4", "7", "10"]  # the activations that end 8, 16 and 32 pixels


def test_the_image_itself_is_no_hint(tmp_path: Path) -> None:
    for unseen in UNSEEN:
        assert unseen.output_shape not in [one.shape for one in candidates(unseen.build(tmp_path), unseen.inputs())]


def test_most_limits_the_pairs_and_spans_the_depth(tmp_path: Path) -> None:
    teacher = UNET.build(tmp_path)
    assert [hint.teacher_path for hint in match(teacher, teacher, UNET.inputs(), most=3)] == ["down1", "middle", "join1"]


def test_chosen_pairs_replace_the_default() -> None:
    hints = match(resnet((8, 8, 8)), resnet((4, 4, 4)), INPUTS, {"blocks.0.conv1": "blocks.0.norm2"})
    assert hints == [Hint("blocks.0.conv1", "blocks.0.norm2", (8, 8, 8), (4, 8, 8))]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"blocks.0.conv3": "blocks.0"}, "hints blocks.0.conv3: the teacher has no layer .* the nearest is blocks.0.conv"),
        ({"blocks.0": "block.0"}, "hints block.0: the student has no layer .* the nearest is blocks.0"),
        ({"blocks.0": "blocks.1.conv1"}, "takes layers of one resolution; got 8x8 and 16x16"),
        ({"start": "start"}, "hints start: the teacher has no layer of this path with features"),
    ],
)
def test_a_wrong_choice_is_told_in_a_sentence(chosen: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        match(resnet((8, 8, 8)), resnet((4, 4, 4)), INPUTS, chosen)


def test_networks_without_a_common_resolution_are_refused() -> None:
    one, other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match="no layers of one resolution in common; they have 8x8 and 6x6"):
        match(one, other, (torch.zeros(1, 3, 8, 8),))


def test_the_table_names_every_pair() -> None:
    table = describe(match(resnet((32, 24, 16)), resnet((16, 12, 8)), INPUTS)).splitlines()
    assert table[0].split() == ["resolution", "teacher", "channels", "student", "channels"]
    assert [line.split() for line in table[1:]] == [
        ["8x8", "blocks.0", "24", "blocks.0", "12"],
        ["16x16", "blocks.1", "16", "blocks.1", "8"],
    ]


def test_regressors_give_the_teachers_channels_and_are_identities_where_they_agree() -> None:
    hints = [Hint("a", "a", (6, 4, 4), (2, 4, 4)), Hint("b", "b", (5, 8, 8), (5, 8, 8))]
    features = [torch.randn(3, 2, 4, 4), torch.randn(3, 5, 8, 8)]
    regressors = Regressors(hints)
    mapped = regressors(features)
    assert [tuple(one.shape) for one in mapped] == [(3, 6, 4, 4), (3, 5, 8, 8)]
    assert mapped[1] is features[1]
    assert sum(weight.numel() for weight in regressors.parameters()) == 2 * 6 + 6


def test_a_tap_reads_what_the_modules_give_and_gradients_pass() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 3, 1))
    x = torch.randn(2, 3, 5, 5)
    output, (late, early) = tap(network, ["1", "0"], x)
    assert torch.equal(early, network[0](x))
    assert torch.equal(late, early.tanh())
    assert torch.equal(output, network(x))
    late.sum().backward()
    assert network[0].weight.grad is not None
    assert network[2].weight.grad is None


def test_a_tap_leaves_no_hook_and_no_tensor_behind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    output, features = tap(network, ["0"], torch.randn(1, 3, 4, 4))
    last = weakref.ref(features[0])
    del output, features
    gc.collect()
    assert last() is None
    with pytest.raises(RuntimeError):
        tap(network, ["0"], torch.randn(1, 5, 4, 4))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_tap_reads_within_a_data_parallel_wrapper(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        x = torch.randn(1, 3, 4, 4)
        output, features = tap(wrapped, ["0"], x)
        assert torch.equal(features[0], network[0](x))
        output.sum().backward()
        assert network[0].weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_a_tap_of_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"hints blocks\.9: the network has no such module; the nearest is blocks\.\d"):
        tap(resnet((8, 8, 8)), ["blocks.9"], *INPUTS)
