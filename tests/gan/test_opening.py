"""Whatever a GAN teacher comes as: it is opened, what goes in and out is found, and it generates what its network generates."""

import json
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.gan_folder import Gan, NetworkSource, save_gan
from gendistill.gan.gan_loading import describe, open_teacher
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.networks.classes import build

NETWORKS = '''
from types import SimpleNamespace

import torch
from torch import nn


class Dcgan(nn.Module):
    """Noise of another name, as (B, n, 1, 1)."""

    def __init__(self, nz=24, channels=8):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, channels, 4), nn.ReLU(), nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh()
        )

    def forward(self, x):
        return self.main(x)


class Nameless(nn.Module):
    """Its latent size is in its first layer alone; classes are in a table; images in [0, 1], in a tuple."""

    def __init__(self, a=20, b=5, k=7):
        super().__init__()
        self.table = nn.Embedding(k, b)
        self.fc = nn.Linear(a + b, 3 * 8 * 8)

    def forward(self, z, y):
        return torch.sigmoid(self.fc(torch.cat([z, self.table(y)], 1))).unflatten(1, (3, 8, 8)), z


class OneHot(nn.Module):
    """Classes behind the noise, as one-hot vectors made within; (tanh + 1) / 2."""

    def __init__(self, n=11, n_classes=4):
        super().__init__()
        self.n_classes = n_classes
        self.fc = nn.Linear(n + n_classes, 64)

    def forward(self, z, label=None):
        hot = nn.functional.one_hot(label, self.n_classes).float()
        return (torch.tanh(self.fc(torch.cat([z, hot], 1))) + 1).unflatten(1, (1, 8, 8)) / 2


class TrajectoryTeacher(nn.Module):
    """An image in, an image out, in an object as diffusers returns them."""

    def __init__(self, width=8):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, sample, return_dict=True):
        return SimpleNamespace(sample=self.inner(sample).clamp(0, 1))


class Deep(nn.Module):
    """It halves an image six times, so that only 64 pixels and more go in."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(*(nn.Conv2d(3, 3, 4, 2, 1) for _ in range(6)))
        self.up = nn.Upsample(scale_factor=64)

    def forward(self, x):
        return torch.tanh(self.up(self.down(x)))


class SuperResolver(nn.Module):
    def __init__(self, scale=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, low):
        return self.shuffle(self.conv(low))


class Evaluator(nn.Module):
    """Patches."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4, 2, 1)

    def forward(self, x):
        return self.conv(x)
'''


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The name of a module in the working directory that nobody has registered anywhere."""
    name = f"networks_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def saved(class_path, path, **arguments):
    """A network of that class, whose weights are in `path`."""
    torch.manual_seed(0)
    network = build(class_path, arguments)
    if path.endswith(".safetensors"):
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return network


def opened(class_path, weights, **settings):
    return open_teacher(class_path, settings=GeneratorConfig(weights=weights, **settings))


FOUND = {
    "Dcgan": GeneratorSpec("noise", (24, 1, 1), (3, 8, 8)),
    "Nameless": GeneratorSpec("noise", (20,), (3, 8, 8), 7, (), (0, 1)),
    "OneHot": GeneratorSpec("noise", (11,), (1, 8, 8), 4, (), (0, 1)),
    "TrajectoryTeacher": GeneratorSpec("image", (3, 32, 32), (3, 32, 32), 0, (), (0, 1)),
    "Deep": GeneratorSpec("image", (3, 64, 64), (3, 64, 64)),
    "SuperResolver": GeneratorSpec("image", (3, 32, 32), (3, 64, 64)),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_an_unseen_network_takes_and_gives_is_found(networks, name):
    network = saved(f"{networks}:{name}", "w.safetensors")
    gan = opened(f"{networks}:{name}", "w.safetensors")
    assert gan.generator.spec == FOUND[name]
    inputs = gan.generator.example(3)
    images = gan.generator(*inputs)
    assert images.shape == (3, *FOUND[name].output_shape)
    own = network(inputs[0] / 2 + 0.5 if name == "TrajectoryTeacher" else inputs[0], *inputs[1:])
    own = own[0] if name == "Nameless" else own.sample if name == "TrajectoryTeacher" else own
    assert torch.allclose(images, own * 2 - 1 if FOUND[name].output_range == (0, 1) else own, atol=1e-6)


def test_a_size_that_is_found_by_trying_is_told(networks, caplog):
    saved(f"{networks}:Deep", "w.pth")
    opened(f"{networks}:Deep", "w.pth")
    assert "works on images of 64x64, which is taken; --set generator.input_shape=[3,H,W] says otherwise" in caplog.text


def test_settings_win_over_what_is_found(networks):
    saved(f"{networks}:TrajectoryTeacher", "w.pth")
    gan = opened(f"{networks}:TrajectoryTeacher", "w.pth", input_shape=[3, 48, 40], output_range=(-1, 1))
    assert gan.generator.spec == GeneratorSpec("image", (3, 48, 40), (3, 48, 40))


def test_arguments_come_from_a_json_file(networks, tmp_path):
    saved(f"{networks}:Dcgan", "w.pth", nz=6, channels=4)
    (tmp_path / "arguments.json").write_text(json.dumps({"_class_name": "Dcgan", "nz": 6, "channels": 4}))
    gan = open_teacher(f"{networks}:Dcgan", config="arguments.json", settings=GeneratorConfig(weights="w.pth"))
    assert gan.generator.spec.input_shape == (6, 1, 1)
    assert gan.generator_source == NetworkSource(f"{networks}:Dcgan", {"nz": 6, "channels": 4})


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"g_ema": state, "g": {"x": torch.zeros(1)}, "d": {"x": torch.zeros(1)}, "args": {"lr": 0.1}},
        lambda state: {"epoch": 3, "generator": {"state_dict": state}, "optimizer": {"state": {}, "lr": [0.1]}},
        lambda state: {"discriminator": {"w": torch.zeros(1)}, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor.half() for name, tensor in state.items()},
    ],
)
def test_a_training_checkpoint_gives_its_generator(networks, nest):
    network = saved(f"{networks}:Dcgan", "w.pth")
    torch.save(nest(network.state_dict()), "checkpoint.pt")
    gan = opened(f"{networks}:Dcgan", "checkpoint.pt")
    (z,) = gan.generator.example(2)
    assert torch.allclose(gan.generator(z), network(z), atol=1e-3)
    assert all(parameter.dtype == torch.float32 for parameter in gan.generator.network.parameters())


def tiny_gan():
    torch.manual_seed(1)
    generator = ResNetGenerator(8, 3, (8, 8, 8), 4).eval()
    discriminator = ResNetDiscriminator(16, 3, (8, 8)).eval()
    of = "gendistill.gan.architectures.resnet:ResNet"
    return Gan(
        Generator(generator, GeneratorSpec("noise", (8,), (3, 16, 16), 3, ("a", "b", "c"))),
        NetworkSource(f"{of}Generator", {"latent_dim": 8, "num_classes": 3, "channels": [8, 8, 8], "class_dim": 4}),
        discriminator,
        NetworkSource(f"{of}Discriminator", {"resolution": 16, "num_classes": 3, "channels": [8, 8]}),
    )


def test_a_gan_folder_opens_as_it_was_with_its_discriminator(tmp_path):
    gan = tiny_gan()
    save_gan(tmp_path / "gan", gan)
    again = open_teacher(str(tmp_path / "gan"))
    example = gan.generator.example(4)
    assert again.generator.spec == gan.generator.spec
    assert torch.equal(again.generator(*example), gan.generator(*example))
    images = gan.generator(*example)
    assert torch.equal(again.discriminator(images, example[1]), gan.discriminator(images, example[1]))
    assert describe(again) == "ResNetGenerator: noise 8 and 3 classes to images 3x16x16 in [-1, 1]; with its discriminator"


def test_settings_win_over_a_folder_and_fresh_leaves_its_discriminator(tmp_path):
    save_gan(tmp_path / "gan", tiny_gan())
    gan = open_teacher(str(tmp_path / "gan"), settings=GeneratorConfig(output_range=(0, 1), discriminator="fresh"))
    assert gan.generator.spec.output_range == (0, 1)
    assert gan.generator.spec.classes == ("a", "b", "c")
    assert gan.discriminator is None
    assert gan.discriminator_source is None


def test_a_built_in_network_that_diffusers_saved_opens_alone(tmp_path):
    gan = tiny_gan()
    gan.generator.network.save_pretrained(tmp_path / "g")
    gan.discriminator.save_pretrained(tmp_path / "d")
    again = open_teacher(str(tmp_path / "g"), settings=GeneratorConfig(discriminator=str(tmp_path / "d")))
    example = gan.generator.example(2)
    assert again.generator.spec == GeneratorSpec("noise", (8,), (3, 16, 16), 3)
    assert torch.equal(again.generator(*example), gan.generator(*example))
    assert again.generator_source.class_path == gan.generator_source.class_path
    assert torch.equal(again.discriminator.logit.weight, gan.discriminator.logit.weight)


def test_a_discriminator_of_ones_own_comes_with_its_weights(networks):
    saved(f"{networks}:Deep", "g.safetensors")
    evaluator = saved(f"{networks}:Evaluator", "d.pth")
    gan = opened(f"{networks}:Deep", "g.safetensors", discriminator=f"{networks}:Evaluator", discriminator_weights="d.pth")
    assert torch.equal(gan.discriminator.conv.weight, evaluator.conv.weight)
    assert gan.discriminator_source == NetworkSource(f"{networks}:Evaluator")
