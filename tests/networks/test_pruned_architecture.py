"""Pruned networks are rebuilt from their class, a record and safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from unseen_generators import UNSEEN, Unseen
from warm_process import ran_warm

from gendistill.networks.pruning import pruned_architecture
from gendistill.networks.pruning.prune import compress

ELSEWHERE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
sys.path.insert(0, sys.argv[1])
from skip_unet import SkipUNet
from gendistill.networks.pruning import pruned_architecture

network = pruned_architecture.apply(SkipUNet(width=16), json.load(open(sys.argv[1] + "/slim.json")))
network.load_state_dict(load_file(sys.argv[1] + "/weights.safetensors"))
x = load_file(sys.argv[1] + "/x.safetensors")["x"]
save_file({"y": network.eval()(x).detach()}, sys.argv[1] + "/y.safetensors")
"""


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda unseen: unseen.module)
def test_a_pruned_network_is_rebuilt_bit_for_bit(unseen: Unseen, tmp_path: Path) -> None:
    student = compress(unseen.build(tmp_path), unseen.inputs(), factor=4).network.eval()
    record = json.loads(json.dumps(pruned_architecture.record(student)))
    rebuilt = pruned_architecture.apply(unseen.build(tmp_path, seed=1), record).eval()
    rebuilt.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(rebuilt(*unseen.inputs()), student(*unseen.inputs()))
    assert pruned_architecture.record(rebuilt) == record


def test_another_process_rebuilds_it_from_class_record_and_safetensors(tmp_path: Path) -> None:
    unseen = UNSEEN[0]
    student = compress(unseen.build(tmp_path), unseen.inputs(), factor=4).network.eval()
    (tmp_path / "slim.json").write_text(json.dumps(pruned_architecture.record(student)))
    save_file(student.state_dict(), tmp_path / "weights.safetensors")
    save_file({"x": unseen.inputs()[0]}, tmp_path / "x.safetensors")
    rebuilt = ran_warm(ELSEWHERE, tmp_path, folder=tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], student(*unseen.inputs()))


def test_a_network_on_the_meta_device_takes_the_shapes(tmp_path: Path) -> None:
    unseen = UNSEEN[2]
    student = compress(unseen.build(tmp_path), unseen.inputs(), factor=4).network
    with torch.device("meta"):
        empty = unseen.build(tmp_path)
    pruned_architecture.apply(empty, pruned_architecture.record(student))
    empty.load_state_dict(student.state_dict(), strict=True, assign=True)
    assert torch.equal(empty(*unseen.inputs()), student(*unseen.inputs()))


class Kinds(nn.Module):
    """One of each kind of layer, a learned constant, and every way of putting a weight under a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.classes = nn.Embedding(5, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.scale = nn.Linear(16, 16)
        self.up = parametrizations.weight_norm(nn.ConvTranspose2d(16, 16, 4, 2, 1))
        self.batch, self.instance = nn.BatchNorm2d(16), nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
        self.group = nn.GroupNorm(4, 16)
        self.bend = nn.PReLU(16)
        self.deep, self.wide = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.one = parametrizations.spectral_norm(nn.Conv2d(32, 16, 1))
        self.two, self.three = spectral_norm(nn.Conv2d(16, 16, 1)), weight_norm(nn.Conv2d(16, 16, 1))
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        style = self.scale(self.layer_norm(self.classes(labels)) + z)[:, :, None, None]
        x = self.group(self.instance(self.batch(self.up(self.constant * style))))
        x = self.one(self.wide(self.deep(self.bend(x))))
        return self.last(F.relu(self.three(self.two(x))))


@pytest.fixture(scope="module")
def kinds() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    teacher, inputs = Kinds(), (torch.randn(2, 1), torch.tensor([1, 4]))
    return teacher, compress(teacher, inputs, params=2000).network.eval(), inputs


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_every_kind_of_layer_comes_back(kinds: tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]) -> None:
    _, student, inputs = kinds
    rebuilt = pruned_architecture.apply(Kinds(), json.loads(json.dumps(pruned_architecture.record(student)))).eval()
    rebuilt.load_state_dict(student.state_dict(), strict=True)
    assert torch.equal(rebuilt(*inputs), student(*inputs))
    assert student.constant.shape[1] < 16


def test_folding_a_copy_leaves_its_original_as_it_was(kinds: tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]) -> None:
    teacher, _, inputs = kinds
    teacher.eval()
    before = teacher(*inputs)
    folded = pruned_architecture.duplicate(teacher)
    pruned_architecture.fold(folded)
    torch.testing.assert_close(folded(*inputs), before)
    assert torch.equal(teacher(*inputs), before)
    assert "up.parametrizations.weight.original0" in teacher.state_dict()
    assert "up.weight" in folded.state_dict()


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3))


def changed(part: str, path: str, value: Any) -> dict[str, Any]:
    record = pruned_architecture.record(small())
    record[part] = record[part] | {path: value}
    return record


CONV = {"in_channels": 3, "out_channels": 8, "groups": 1, "plain": True}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (None, "expects version 1 or 2; got a NoneType"),
        ({"version": 7}, "expects version 1 or 2; got version 7"),
        ({"version": 1, "separable": {}, "layers": []}, "pruned architecture layers: expects an object by paths; got list"),
        (changed("layers", "4", CONV), "layers: the network has no module 4"),
        (changed("layers", "__class__", CONV), "layers: the network has no module __class__"),
        (
            changed("layers", "0", CONV | {"out_channels": -4}),
            "pruned architecture 0 out_channels: expects an integer from 1 to 8; got -4",
        ),
        (changed("layers", "0", CONV | {"out_channels": 10**12}), "expects an integer from 1 to 8; got 1000000000000"),
        (changed("layers", "0", CONV | {"out_channels": 4.0}), "expects an integer from 1 to 8; got 4.0"),
        (changed("layers", "0", CONV | {"out_channels": True}), "expects an integer from 1 to 8; got True"),
        (changed("layers", "0", CONV | {"out_channels": "4"}), "expects an integer from 1 to 8; got 4"),
        (
            changed("layers", "0", CONV | {"forward": 4}),
            "the counts of a Conv2d are in_channels, out_channels, groups, plain; got",
        ),
        (changed("layers", "0", CONV | {"plain": 1}), "plain expects true or false; got 1"),
        (changed("layers", "0", 5), "the counts of a Conv2d are .*; got int"),
        (changed("layers", "1", {"num_channels": 5, "num_groups": 2, "plain": True}), "num_channels 5 cannot be divided by 2"),
        (changed("separable", "1", {"bias": True}), "separable expects a Conv2d; the network has a GroupNorm"),
        (changed("separable", "0", {"bias": False}), "separable: expects bias true; got"),
        (changed("parameters", "0.weight", [4, 3, 3, 3]), "parameters: the network has no 0.weight"),
        (changed("attributes", "0", {"in_channels": 3}), "attributes 0: the network has no number in_channels"),
        (changed("attributes", "", [1]), "attributes of the network: expects an object of numbers; got list"),
    ],
)
def test_a_hostile_record_is_refused_in_a_sentence(record: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pruned_architecture.apply(small(), record)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.constant = 4, nn.Parameter(torch.ones(1, 4))


@pytest.mark.parametrize("shape", [[1], [1, 0], [1, 5], [1, -1], [1, 2.0], "14", None])
def test_shapes_of_bare_parameters_are_checked(shape: Any) -> None:
    record = pruned_architecture.record(Constant())
    with pytest.raises(ValueError, match=r"pruned architecture constant: expects a shape up to \[1, 4\]; got"):
        pruned_architecture.apply(Constant(), record | {"parameters": {"constant": shape}})


@pytest.mark.parametrize("number", [0, 5, "4", None, [4]])
def test_numbers_of_modules_are_checked(number: Any) -> None:
    record = pruned_architecture.record(Constant())
    assert record["attributes"] == {"": {"width": 4}}
    with pytest.raises(
        ValueError, match="pruned architecture attributes of the network width: expects an integer from 1 to 4; got"
    ):
        pruned_architecture.apply(Constant(), record | {"attributes": {"": {"width": number}}})
