import pytest
import torch
import torch.nn.functional as F
from tiny_gans import NOISE, tiny_gan
from torch import nn

from gendistill.gan.discriminator import adapt
from gendistill.gan.generator import GeneratorSpec
from gendistill.gan.perception import LAYERS, Perception, open_perception
from gendistill.networks.hints import candidates

GREY = GeneratorSpec("noise", (8,), (1, 16, 16))
EXAMPLE = torch.zeros(1, 3, 16, 16)


class Pyramid(nn.Module):
    """Two layers a resolution, six resolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(3, 3, 3, 1 + number % 2, 1) for number in range(12)], nn.Flatten())

    def forward(self, x):
        return self.layers(x)


def test_the_last_map_of_each_of_the_coarsest_resolutions_is_seen_finest_first():
    torch.manual_seed(0)
    network = Pyramid()
    images = torch.randn(2, 3, 64, 64)
    maps = Perception(network, (images[:1],)).maps(images)
    assert [tuple(of.shape) for of in maps] == [(2, 3, edge, edge) for edge in (8, 4, 2, 1)]
    assert len(maps) == LAYERS
    torch.testing.assert_close(maps[-1].flatten(1), network(images))


def test_gradients_pass_to_the_images_and_the_network_stays_as_it_is():
    network = Pyramid().train()
    perception = Perception(network, (torch.zeros(1, 3, 32, 32),))
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    sum(of.square().sum() for of in perception.maps(images)).backward()
    assert (images.grad != 0).any()
    assert not network.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_imagenets_networks_are_given_its_mean_and_deviation():
    seen = []

    class Seeing(Pyramid):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    perception = Perception(Seeing(), (EXAMPLE,), imagenet=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of images in [0, 1]
    perception.maps((mean * 2 - 1).expand(2, 3, 16, 16))
    assert seen[-1].abs().max() < 1e-3


def test_the_teachers_discriminator_looks_at_classes_too():
    discriminator = adapt(tiny_gan().discriminator, NOISE)
    perception = open_perception("discriminator", NOISE, discriminator, EXAMPLE)
    images = torch.randn(3, 3, 16, 16)
    maps = perception.maps(images, torch.tensor([0, 1, 2]))
    assert [tuple(of.shape) for of in maps] == [(3, 8, edge, edge) for edge in (16, 8, 4)]
    for of in maps:
        assert (of[0] != of[1]).any()
    assert open_perception("discriminator", NOISE, None, EXAMPLE) is None


def test_the_emoji_network_looks_at_images_of_any_size_as_if_they_had_32_pixels(generator):
    perception = open_perception("emoji", NOISE, None, EXAMPLE)
    small = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    large = F.interpolate(small, (32, 32), mode="bilinear", antialias=True)
    for one, other in zip(perception.maps(small), perception.maps(large), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_under_a_spectral_norm_are_no_features():
    evaluator = tiny_gan().discriminator
    found = candidates(evaluator, (EXAMPLE, torch.zeros(1).long()))
    assert {"blocks.0", "blocks.0.conv1", "blocks.1.skip"} <= {one.path for one in found}
    assert {one.shape[1:] for one in found} == {(16, 16), (8, 8), (4, 4)}


@pytest.mark.parametrize(
    ("name", "spec", "sentence"),
    [
        ("emoji", GREY, "perceptual_network emoji: looks at 3 channels, the teacher generates 1"),
        ("vgg", NOISE, "perceptual_network vgg: expects discriminator, emoji or torchvision:NAME"),
        ("torchvision:", NOISE, "perceptual_network torchvision:: expects discriminator, emoji or torchvision:NAME"),
        ("torchvision:nothing", NOISE, "perceptual_network torchvision:nothing cannot be opened"),
    ],
)
def test_what_cannot_look_is_refused(name, spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_perception(name, spec, None, torch.zeros(1, *spec.output_shape))
