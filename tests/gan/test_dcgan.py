import pytest
import torch
from network_checks import assert_exports, assert_hinge_steps, assert_saves_and_loads

from gendistill.gan.architectures.dcgan import DCGANDiscriminator, DCGANGenerator

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(num_classes=3):
    return DCGANGenerator(6, num_classes, (8, 4), 3, 16, 4)


def test_the_defaults_have_the_parameters_of_pytorchs_dcgan_and_biases_of_the_ends():
    # The networks of the tutorial in PyTorch's examples, which has no biases.
    assert sum(p.numel() for p in DCGANGenerator().parameters()) == 3_576_704 + 3
    assert sum(p.numel() for p in DCGANDiscriminator().parameters()) == 2_765_568 + 64 + 1


def test_the_weights_begin_as_the_paper_says():
    for network in (DCGANGenerator(), DCGANDiscriminator()):
        for layer in network.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.BatchNorm2d)):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
                assert layer.weight.mean().item() == pytest.approx(float(isinstance(layer, torch.nn.BatchNorm2d)), abs=0.01)


@pytest.mark.parametrize(("channels", "resolution"), [((8, 4), 16), ((8, 4), 28), ((8, 8, 8, 4), 64), ((4,), 2)])
def test_images_and_logits_have_the_shape_that_was_asked_for(channels, resolution):
    images = DCGANGenerator(6, 0, channels, 1, resolution)(torch.randn(3, 6))
    assert images.shape == (3, 1, resolution, resolution)
    assert images.abs().max() <= 1
    assert DCGANDiscriminator(resolution, 0, channels[::-1], 1)(images).shape == (3,)


@pytest.mark.parametrize("of", [DCGANGenerator, DCGANDiscriminator])
@pytest.mark.parametrize("resolution", [30, 2])
def test_a_resolution_that_the_channels_do_not_divide_is_refused(of, resolution):
    with pytest.raises(ValueError, match=f"resolution {resolution}: expects a multiple of 4 with 2 channels"):
        of(resolution=resolution, channels=(8, 4))


def test_the_class_and_the_noise_change_the_image():
    network, z = small().train(), torch.randn(4, 6)
    images = network(z, LABELS)
    others = network(z, (LABELS + 1) % 3)
    assert (others - images).abs().amax((1, 2, 3)).min() > 1e-3
    assert (network(-z, LABELS) - images).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_class_changes_the_logit_by_its_projection():
    network, x = DCGANDiscriminator(8, 3, (4, 8)).eval(), torch.randn(1, 3, 8, 8)
    logits = [network(x, torch.tensor([label])) for label in range(3)]
    features = torch.nn.functional.leaky_relu(
        network.norms[0](network.downs[0](torch.nn.functional.leaky_relu(network.first(x), 0.2))), 0.2
    )
    difference = (network.classes.weight[2] - network.classes.weight[0]) @ features.mean((2, 3))[0]
    torch.testing.assert_close(logits[2] - logits[0], difference[None])


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_hinge_step_reaches_every_parameter(num_classes):
    discriminator = DCGANDiscriminator(16, num_classes, (4, 8))
    assert_hinge_steps(small(num_classes), discriminator, torch.randn(4, 6), LABELS if num_classes else None)


def test_both_save_and_load(tmp_path):
    assert_saves_and_loads(small(), (torch.randn(4, 6), LABELS), tmp_path / "generator")
    assert_saves_and_loads(DCGANDiscriminator(8, 3, (4, 8)), (torch.randn(4, 3, 8, 8), LABELS), tmp_path / "discriminator")


def test_the_generator_exports():
    assert_exports(small(), (torch.randn(4, 6), LABELS))
