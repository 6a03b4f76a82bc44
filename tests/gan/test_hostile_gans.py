"""GAN teachers that are broken, mistaken or meant to harm: one sentence, nothing of them is run."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from harmful import Harmful
from safetensors.torch import save_file
from torch import nn

from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.gan_folder import Gan, NetworkSource, save_gan
from gendistill.gan.gan_loading import open_teacher
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.gan.generator_config import GeneratorConfig

MODULE = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, nz=4, edge=4):
        super().__init__()
        self.edge = edge
        self.fc = nn.Linear(nz, 3 * edge * edge)

    def forward(self, z):
        return torch.tanh(self.fc(z)).unflatten(1, (3, self.edge, self.edge))

class Classes(Net):
    def forward(self, z, labels):
        return super().forward(z) * labels[:, None, None, None]

class Styled(Net):
    def forward(self, z, style_code, *, strength):
        return super().forward(z)

class Timed(Net):
    """As diffusers' UNet2DModel."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return sample

class Flat(Net):
    def forward(self, z):
        return self.fc(z)

class Nothing(Net):
    def forward(self, z):
        return None

class Needy(Net):
    def __init__(self, size):
        super().__init__(size)

class Headless(nn.Module):
    pass

class Unfindable(nn.Module):
    def forward(self, z):
        raise RuntimeError("first line\\nsecond line")

class Small(nn.Module):
    """It evaluators images of 8 pixels."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 1)

    def forward(self, x):
        return self.fc(x.flatten(1))

def function():
    open("owned", "w")
'''


def sentence(teacher, config=None, **settings):
    with pytest.raises(ValueError) as error:  # noqa: PT011  its text is what the tests are about
        open_teacher(teacher, config=config, settings=GeneratorConfig(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with networks, and nothing that was run in it afterwards."""
    module = f"hostile_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    (tmp_path / f"{module}_broken.py").write_text("import a_module_that_nobody_has")
    (tmp_path / f"{module}_script.py").write_text("import sys; sys.exit(2)")
    (tmp_path / f"{module}_raising.py").write_text("raise RuntimeError('no\\nway')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield module
    assert not os.path.exists("owned")


def net_weights(path="w.safetensors", nz=4):
    layer = nn.Linear(nz, 48)
    save_file({"fc.weight": layer.weight.detach(), "fc.bias": layer.bias.detach()}, path)
    return path


@pytest.mark.parametrize("name", ["w.pth", "w.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_not_opened(place, name, zipped):
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}, "owner": Harmful()}, name, _use_new_zipfile_serialization=zipped)
    said = sentence(f"{place}:Net", weights=name)
    assert "would run code when opened" in said
    assert "open" in said
    assert "save_file(network.state_dict(), 'weights.safetensors')" in said


def test_a_plain_pickle_is_not_opened(place):
    with open("w.pth", "wb") as file:
        pickle.dump(Harmful(), file)
    assert "run code" in sentence(f"{place}:Net", weights="w.pth")
    with open("w.pkl", "wb") as file:
        pickle.dump(Harmful(), file)
    assert "takes .safetensors" in sentence(f"{place}:Net", weights="w.pkl")


def test_a_whole_network_in_a_pickle_is_not_opened(place):
    torch.save(nn.Linear(2, 2), "w.pth")
    assert "torch.nn.modules.linear.Linear" in sentence(f"{place}:Net", weights="w.pth")


WEIGHTS = {
    "no such file": (lambda: None, "there is no such file"),
    "a text": (lambda: Path("w.pth").write_text("weights"), "is no"),
    "nothing": (lambda: Path("w.pth").touch(), "is no"),
    "no tensors": (lambda: torch.save({"epoch": 3, "loss": [0.1]}, "w.pth"), "holds no state_dict but epoch, loss"),
    "a list": (lambda: torch.save([torch.zeros(2)], "w.pth"), "holds no state_dict but list"),
    "another network's": (lambda: torch.save({"conv.weight": torch.zeros(2)}, "w.pth"), "fc.weight is missing, and 2 more"),
    "another size": (
        lambda: torch.save({"fc.weight": torch.zeros(48, 5), "fc.bias": torch.zeros(48)}, "w.pth"),
        "fc.weight is [48, 5] where the network has [48, 4]",
    ),
    "no numbers": (
        lambda: torch.save({"fc.weight": torch.full((48, 4), torch.nan), "fc.bias": torch.zeros(48)}, "w.pth"),
        "fc.weight holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("make", WEIGHTS)
def test_weights_that_do_not_fit_are_told_in_a_sentence(place, make):
    WEIGHTS[make][0]()
    assert WEIGHTS[make][1] in sentence(f"{place}:Net", weights="w.pth")


def test_a_cut_safetensors_is_told_in_a_sentence(place):
    whole = Path(net_weights()).read_bytes()
    for part in (whole[:-8], whole[:4], b"\xff" * 64):
        Path("w.safetensors").write_bytes(part)
        assert "no whole safetensors" in sentence(f"{place}:Net", weights="w.safetensors")


TEACHERS = {
    "nowhere": "there is no such file or folder",
    "no_such_module_anywhere:Net": "no_such_module_anywhere is not importable",
    "os:system": "is no class of torch.nn.Module",
    "{module}:function": "is no class of torch.nn.Module",
    "{module}:Nett": "did you mean Net?",
    "{module}_broken:Net": "needs a_module_that_nobody_has",
    "{module}_script:Net": "fails when imported: SystemExit: 2",
    "{module}_raising:Net": "fails when imported: RuntimeError: no",
    "{module}:Needy": "cannot be built with (): TypeError",
    "{module}:Headless": "has no forward",
    "{module}:Styled": "forward requires style_code, strength",
    "{module}:Timed": "forward requires timestep",
    "{module}:Classes": "--set generator.num_classes=10",
    "{module}:Flat": "no images (B, C, H, W)",
    "{module}:Nothing": "it gives a NoneType",
    "{module}:Unfindable": "--set generator.input_shape=[128]",
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_class_that_cannot_be_a_teacher_is_told_in_a_sentence(place, teacher):
    assert TEACHERS[teacher] in sentence(teacher.format(module=place))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"input_shape": [5]}, "generator.input_shape [5]: "),
        ({"num_classes": 3}, "takes no class numbers"),
        ({"kind": "image", "input_shape": [3, 8, 8]}, "does not work with it"),
        ({"discriminator": "nowhere"}, "takes module:Class, a folder, or fresh"),
        ({"discriminator": "os:system", "discriminator_weights": "w.safetensors"}, "is no class of torch.nn.Module"),
        ({"discriminator": "fresh", "discriminator_weights": "w.safetensors"}, "is for a discriminator module:Class"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_a_sentence(place, settings, part):
    assert part in sentence(f"{place}:Net", weights=net_weights(), **settings)


def test_a_file_of_arguments_that_is_none_is_told_in_a_sentence(place):
    assert "there is no such file" in sentence(f"{place}:Net", config="nowhere.json")
    for text in ("[1]", "{", "[" * 100_000):
        Path("a.json").write_text(text)
        assert "teacher_config a.json" in sentence(f"{place}:Net", config="a.json")


def test_a_discriminator_of_another_resolution_is_told_with_both_sizes(place):
    torch.manual_seed(0)
    ResNetDiscriminator(64, channels=(4, 4)).save_pretrained("d64")
    said = sentence(f"{place}:Net", weights=net_weights(), discriminator="d64")
    assert "64x64" in said
    assert "4x4" in said
    save_file({"fc.weight": torch.zeros(1, 192), "fc.bias": torch.zeros(1)}, "d.safetensors")
    said = sentence(
        f"{place}:Net", weights="w.safetensors", discriminator=f"{place}:Small", discriminator_weights="d.safetensors"
    )
    assert "8x8" in said
    assert "4x4" in said


# Folders


@pytest.fixture
def folder():
    torch.manual_seed(0)
    generator = ResNetGenerator(4, 2, (4, 4), 2).eval()
    source = NetworkSource(
        "gendistill.gan.architectures.resnet:ResNetGenerator",
        {"latent_dim": 4, "num_classes": 2, "channels": [4, 4], "class_dim": 2},
    )
    save_gan(Path("gan"), Gan(Generator(generator, GeneratorSpec("noise", (4,), (3, 8, 8), 2)), source))
    return "gan"


def change(folder, **changes):
    path = os.path.join(folder, "gan.json")
    described = json.loads(Path(path).read_text())
    for name, value in changes.items():
        at, _, last = name.rpartition("__")
        (described[at] if at else described)[last] = value
    Path(path).write_text(json.dumps(described))


FOLDERS = {
    "version": ({"format_version": 2}, "format_version 2"),
    "kind": ({"kind": "music"}, "kind is 'music'"),
    "shape of words": ({"input_shape": ["many"]}, "input_shape.0 is 'many'"),
    "no shape": ({"input_shape": []}, "input_shape []"),
    "a shape that fills the memory": ({"input_shape": [10**6, 10**6]}, "takes sizes of at least 1"),
    "negative": ({"output_shape": [3, -8, 8]}, "output_shape [3, -8, 8]"),
    "another input": ({"input_shape": [5]}, "the generator fails"),
    "another output": ({"output_shape": [3, 16, 16]}, "gives images [3, 8, 8] where gan.json says [3, 16, 16]"),
    "classes": ({"classes": ["one"]}, "num_classes 2"),
    "range": ({"output_range": [1, -1]}, "output_range"),
    "generator is a text": ({"generator": "resnet"}, "generator: expects a mapping"),
    "no class": ({"generator": {"arguments": {}}}, "class_path is missing"),
    "a function": ({"generator__class_path": "os:system"}, "is no class of torch.nn.Module"),
    "no class path": ({"generator__class_path": "../evil.py"}, "takes module:Class"),
    "unknown arguments": ({"generator__arguments": {"depth": 3}}, "cannot be built with (depth=3)"),
    "other widths": ({"generator__arguments": {"latent_dim": 4, "num_classes": 2}}, "does not fit ResNetGenerator"),
    "unknown module": ({"generator__class_path": "gone:Net"}, "the module gone is not importable"),
    "no generator": ({"generator": None}, "generator: expects a mapping"),
    "student": ({"student": 4}, "student"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_says_what_is_not_so_is_told_in_a_sentence(folder, name):
    change(folder, **FOLDERS[name][0])
    assert FOLDERS[name][1] in sentence(folder)


def test_a_folder_that_is_not_whole_is_told_in_a_sentence(folder):
    weights = "gan/generator/diffusion_pytorch_model.safetensors"
    torch.save(Harmful(), weights)
    assert "no whole safetensors" in sentence(folder)
    os.remove(weights)
    assert "there is no such file" in sentence(folder)
    for text in ("", "[]", '{"format_version": 1}', "null", "\x00"):
        Path("gan/gan.json").write_text(text)
        assert "gan.json" in sentence(folder)
    os.remove("gan/gan.json")
    assert "neither gan.json nor config.json" in sentence(folder)


def test_a_saved_network_of_an_unknown_class_is_told_in_a_sentence():
    os.mkdir("net")
    Path("net/config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    assert "names the class UNet2DModel, which is not built in" in sentence("net")
    Path("net/model_index.json").write_text("{}")
    assert "is a diffusion pipeline" in sentence("net")


def test_weights_for_a_folder_that_has_its_own_are_told_in_a_sentence(folder):
    assert "has its own" in sentence(folder, weights="w.pth")
    assert "has its own" in sentence(folder, config="a.json")
    assert "takes module:Class as the teacher" in sentence(net_weights())


def test_more_classes_than_the_network_has_are_told_in_a_sentence(place, folder):
    assert "index out of range" in sentence(folder, num_classes=3)


@pytest.fixture
def programs():
    network = nn.Linear(4, 4).eval()
    torch.jit.trace(network, torch.zeros(2, 4)).save("program.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 4),)), "program.pt2")


@pytest.mark.parametrize("name", ["program.pt", "program.pt2"])
def test_a_program_is_not_opened_as_a_teacher_nor_as_weights(place, programs, name, monkeypatch):
    for loader in (torch.jit, torch.export, torch):
        monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("the program was opened"))
    for said in (sentence(name), sentence(f"{place}:Net", weights=name)):
        assert f"{name}: is a program (TorchScript or torch.export), and programs are not opened as they hold code" in said
        assert "takes module:Class as the teacher" in said
        assert "or a GAN's folder" in said


def test_a_state_dict_that_is_called_as_a_program_is_told_to_be_weights(place):
    torch.save(nn.Linear(4, 48).state_dict(), "weights.pt")
    assert "weights.pt: is a file of weights" in sentence("weights.pt")
