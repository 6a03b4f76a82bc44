import pytest
import torch
from network_checks import assert_exports, assert_hinge_steps, assert_saves_and_loads, assert_spectral_norms

from gendistill.gan.architectures.resnet import ConditionalBatchNorm, ResNetDiscriminator, ResNetGenerator

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(num_classes=3):
    return ResNetGenerator(6, num_classes, (8, 8, 4), 4)


@pytest.mark.parametrize(("channels", "edge"), [((8,), 4), ((8, 4), 8), ((8, 8, 8, 4), 32)])
def test_each_width_after_the_first_doubles_the_edge_from_4(channels, edge):
    images = ResNetGenerator(6, 0, channels, out_channels=2)(torch.randn(2, 6))
    assert images.shape == (2, 2, edge, edge)
    assert images.abs().max() <= 1


def test_the_class_and_the_noise_change_the_image():
    network, z = small().eval(), torch.randn(1, 6)
    images = [network(z, torch.tensor([label])) for label in range(3)]
    assert min((images[a] - images[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    assert (network(-z, torch.tensor([0])) - images[0]).abs().max() > 1e-3


def test_in_eval_mode_a_image_does_not_depend_on_its_batch():
    network, z = small().eval(), torch.randn(4, 6)
    torch.testing.assert_close(network(z, LABELS)[2:3], network(z[2:3], LABELS[2:3]))


def test_a_conditional_norm_scales_and_shifts_what_the_plain_norm_made():
    norm, plain = ConditionalBatchNorm(5, 3), torch.nn.BatchNorm2d(5)
    x, condition = torch.randn(4, 5, 6, 6), torch.randn(4, 3)
    scale, shift = norm.scale(condition), norm.shift(condition)
    expected = torch.stack([plain(x)[b] * (1 + scale[b, :, None, None]) + shift[b, :, None, None] for b in range(4)])
    torch.testing.assert_close(norm(x, condition), expected)


def test_the_projection_is_the_product_of_the_class_and_the_features():
    network, x = ResNetDiscriminator(8, 3, (8, 8), 1).eval(), torch.randn(4, 3, 8, 8)
    features = torch.relu(network.blocks[1](network.blocks[0](x))).sum((2, 3))
    weight = network.logit.weight[0]
    expected = [features[b] @ (weight + network.classes.weight[LABELS[b]]) + network.logit.bias[0] for b in range(4)]
    torch.testing.assert_close(network(x, LABELS), torch.stack(expected))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 9, 22)])
def test_a_discriminator_takes_images_of_any_size(shape):
    assert ResNetDiscriminator(8, 0, (8, 8), 1)(torch.randn(shape)).shape == (2,)


def test_spectral_norms_hold_every_weight_at_norm_1():
    assert_spectral_norms(ResNetDiscriminator(8, 3, (8, 8), 1), (torch.randn(4, 3, 8, 8), LABELS))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_hinge_step_reaches_every_parameter(num_classes):
    discriminator = ResNetDiscriminator(16, num_classes, (8, 8), 1)
    assert_hinge_steps(small(num_classes), discriminator, torch.randn(4, 6), LABELS if num_classes else None)


def test_both_save_and_load(tmp_path):
    assert_saves_and_loads(small(), (torch.randn(4, 6), LABELS), tmp_path / "generator")
    discriminator = ResNetDiscriminator(8, 3, (8, 8), 1)
    assert_saves_and_loads(discriminator, (torch.randn(4, 3, 8, 8), LABELS), tmp_path / "discriminator")


def test_the_generator_exports():
    assert_exports(small(), (torch.randn(4, 6), LABELS))
