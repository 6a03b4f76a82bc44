"""Tiny random GAN folders: generators of noise by class and without, and of images from images."""

import dataclasses

import torch
from torch import nn

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.gan.gan_folder import Gan, NetworkSource, save_gan
from gendistill.gan.generator import Generator, GeneratorSpec

KINDS = (
    *("activities", "animals and nature", "component", "flags", "food and drink", "objects", "people and body"),
    *("smileys and emotion", "symbols", "travel and places"),
)
CLASSES = tuple(sorted(f"{vendor} emoji of {kind}" for vendor in ("google", "twitter") for kind in KINDS))


class Recolour(nn.Module):
    """Images (B, 3, H, W) to twice as many pixels, their colours mixed."""

    def __init__(self, seed=0):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return torch.tanh(nn.functional.interpolate(self.mix(x), scale_factor=2.0))


class Wide(nn.Module):
    """Noise (B, 8) to grey images (B, 1, 12, 24), with random numbers of its own where `random`."""

    def __init__(self, random=False):
        super().__init__()
        self.start, self.random = nn.Linear(8, 12 * 24), random

    def forward(self, z):
        x = self.start(z).view(-1, 1, 12, 24)
        return torch.tanh(x + torch.randn_like(x) if self.random else x)


def generator(channels=(12, 12, 8, 8), seed=0, classes=CLASSES):
    """A random generator of emoji classes, or of others."""
    torch.manual_seed(seed)
    arguments = {"latent_dim": 16, "num_classes": len(classes), "channels": list(channels), "class_dim": 4}
    network = ResNetGenerator(**arguments).eval()
    for parameter in network.parameters():
        parameter.data.mul_(1.5)
    source = NetworkSource(f"{ResNetGenerator.__module__}:ResNetGenerator", arguments)
    return Generator(network, GeneratorSpec("noise", (16,), (3, 32, 32), len(classes), classes)), source


def save(folder, made, source, student=None):
    save_gan(folder, Gan(made, source, student=student))
    return folder


def random_gans(place):
    """Folders by name: a teacher, its student, and generators of other kinds."""
    teacher = save(place / "teacher", *generator((32, 24, 16, 16)))
    told = {"method": "gan", "teacher": str(teacher), "compress": 4, "macs": 1, "parameters": 1}
    plain = Generator(Wide().eval(), GeneratorSpec("noise", (8,), (1, 12, 24)))
    noisy = Generator(Wide(True).eval(), GeneratorSpec("noise", (8,), (1, 12, 24)))
    trajectory_teacher = Generator(Recolour().eval(), GeneratorSpec("image", (3, 16, 16), (3, 32, 32)))
    return {
        "teacher": teacher,
        "student": save(place / "run" / "student", *generator(seed=1), told),
        "plain": save(place / "plain", plain, NetworkSource(f"{__name__}:Wide")),
        "noisy": save(place / "noisy", noisy, NetworkSource(f"{__name__}:Wide", {"random": True})),
        "few": save(place / "few", *generator(classes=("cat", "dog"))),
        "painter": save(place / "painter", trajectory_teacher, NetworkSource(f"{__name__}:Recolour")),
    }


def renamed(made, classes):
    """The same generator with other names of its classes."""
    return Generator(made.network, dataclasses.replace(made.spec, classes=tuple(classes), num_classes=made.spec.num_classes))


class Flat(nn.Module):
    """A convolution whose output is taken apart by `view`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1)

    def forward(self, z):
        return torch.tanh(self.conv(z).view(-1, 12 * 16).view(-1, 3, 8, 8))
