"""A GAN's folder gives back what was put into it, in whatever precision it lies on the disk."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from test_opening import tiny_gan
from torch import nn

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.gan.gan_folder import (
    WEIGHTS,
    Gan,
    NetworkSource,
    _with_found_paths,
    _with_relative_paths,
    is_gan_folder,
    open_gan,
    save_gan,
)
from gendistill.gan.generator import Generator, GeneratorSpec

SPEC = GeneratorSpec("noise", (6,), (3, 4, 4), output_range=(0.0, 1.0))


class Tied(nn.Module):
    """Two names of one weight, and a counter that is no floating-point number."""

    def __init__(self, nz: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(nz, nz)
        self.second = nn.Linear(nz, nz)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(nz)
        self.out = nn.Linear(nz, 48)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.out(self.norm(self.second(self.first(z))))).view(-1, 3, 4, 4)


def tied():
    torch.manual_seed(0)
    network = Tied()
    network.norm.num_batches_tracked += 70_000  # more than float16 counts to
    network.norm.running_var.fill_(100_000.0)
    return Gan(Generator(network.eval(), SPEC), NetworkSource("test_gan_folder:Tied", {"nz": 6}), student={"factor": 4})


def test_a_saved_gan_opens_as_it_was(tmp_path):
    gan = tied()
    save_gan(tmp_path / "gan", gan)
    assert is_gan_folder(tmp_path / "gan")
    again = open_gan(tmp_path / "gan")
    assert (again.generator.spec, again.generator_source, again.student) == (SPEC, gan.generator_source, {"factor": 4})
    state = again.generator.network.state_dict()
    assert all(torch.equal(of, state[name]) for name, of in gan.generator.network.state_dict().items())
    assert not any(part.training for part in again.generator.network.modules())


def test_half_precision_on_the_disk_opens_in_single_precision(tmp_path):
    gan = tied()
    save_gan(tmp_path / "gan", gan, torch.float16)
    on_disk = load_file(tmp_path / "gan" / "generator" / WEIGHTS)
    assert on_disk["out.weight"].dtype == torch.float16
    state = open_gan(tmp_path / "gan").generator.network.state_dict()
    assert all(of.dtype in (torch.float32, torch.int64) for of in state.values())
    assert torch.equal(state["out.weight"], gan.generator.network.out.weight.half().float())


def test_numbers_that_half_precision_does_not_hold_stay_whole(tmp_path):
    save_gan(tmp_path / "gan", tied(), torch.float16)
    network = open_gan(tmp_path / "gan").generator.network
    assert network.norm.running_var[0] == 100_000
    assert network.norm.num_batches_tracked == 70_000


def test_diffusers_opens_the_built_in_networks_of_a_folder(tmp_path):
    gan = tiny_gan()
    save_gan(tmp_path / "gan", gan)
    alone = ResNetGenerator.from_pretrained(tmp_path / "gan" / "generator").eval()
    example = gan.generator.example(2)
    assert torch.equal(alone(*example), gan.generator(*example))


def test_a_folder_of_a_later_version_is_told_in_a_sentence(tmp_path):
    save_gan(tmp_path / "gan", tied())
    described = json.loads((tmp_path / "gan" / "gan.json").read_text())
    (tmp_path / "gan" / "gan.json").write_text(json.dumps({**described, "format_version": 7}))
    with pytest.raises(ValueError, match="format_version 7: expects 1"):
        open_gan(tmp_path / "gan")


def test_keys_of_a_later_minor_version_are_left_out(tmp_path):
    save_gan(tmp_path / "gan", tied())
    described = json.loads((tmp_path / "gan" / "gan.json").read_text())
    (tmp_path / "gan" / "gan.json").write_text(json.dumps({**described, "mood": "good"}))
    assert open_gan(tmp_path / "gan").generator.spec == SPEC


def test_a_discriminator_whose_class_is_gone_is_left_out(tmp_path, caplog):
    save_gan(tmp_path / "gan", tiny_gan())
    described = json.loads((tmp_path / "gan" / "gan.json").read_text())
    described["discriminator"]["class_path"] = "gone:Evaluator"
    (tmp_path / "gan" / "gan.json").write_text(json.dumps(described))
    gan = open_gan(tmp_path / "gan")
    assert gan.discriminator is None
    assert gan.discriminator_source is None
    assert "the module gone is not importable" in caplog.text


def test_a_discriminator_without_its_class_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="the discriminator cannot be saved without a source"):
        save_gan(tmp_path / "gan", dataclasses.replace(tied(), discriminator=nn.Linear(1, 1)))


def test_the_teacher_of_a_student_and_its_weights_are_found_where_all_were_moved_together(tmp_path):
    student = tmp_path / "tree" / "run" / "student"
    student.mkdir(parents=True)
    paths = {"teacher": "my_module:Generator", "generator": {"weights": str(tmp_path / "tree" / "g.safetensors")}}
    (tmp_path / "tree" / "g.safetensors").touch()
    stored = _with_relative_paths(paths, student)
    assert _with_found_paths(stored, student)["generator"] == paths["generator"]
    (tmp_path / "tree").rename(tmp_path / "moved")
    found = _with_found_paths(stored, tmp_path / "moved" / "run" / "student")
    assert found["generator"]["weights"] == str(tmp_path / "moved" / "g.safetensors")
    assert found["teacher"] == "my_module:Generator"
