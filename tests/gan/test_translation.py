import pytest
import torch
import torch.nn.functional as F
from network_checks import assert_exports, assert_hinge_steps, assert_saves_and_loads, assert_spectral_norms

from gendistill.gan.architectures.translation import PatchDiscriminator, ResnetBlock, ResNetTranslator

LABELS = torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small():
    return ResNetTranslator(3, 3, 4, 2)


def test_the_defaults_have_the_parameters_of_the_papers_networks():
    # As the authors' own code prints them: 11.378 M and 2.765 M.
    assert round(sum(p.numel() for p in ResNetTranslator().parameters()) / 1e6, 3) == 11.378
    assert round(sum(p.numel() for p in PatchDiscriminator().parameters()) / 1e6, 3) == 2.765


@pytest.mark.parametrize("size", [(8, 8), (16, 28), (20, 12)])
def test_a_image_becomes_one_of_the_same_size(size):
    made = ResNetTranslator(1, 2, 4, 1)(torch.randn(2, 1, *size))
    assert made.shape == (2, 2, *size)
    assert made.abs().max() <= 1


@pytest.mark.parametrize("size", [(18, 16), (16, 17)])
def test_a_size_that_cannot_be_halved_twice_is_refused(size):
    with pytest.raises(ValueError, match=f"an image of {size[0]} x {size[1]}: expects multiples of 4"):
        small()(torch.randn(1, 3, *size))


def test_a_image_does_not_depend_on_its_batch_even_in_training():
    network, x = small().train(), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-5)


def test_a_residual_block_is_its_input_and_two_convolutions_reflected_at_the_border():
    block, x = ResnetBlock(4), torch.randn(2, 4, 6, 5)

    def normed(conv, x):
        y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias)
        return (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    torch.testing.assert_close(block(x), x + normed(block.conv2, normed(block.conv1, x).relu()), rtol=1e-4, atol=1e-5)


def test_contrast_and_brightness_are_lost_in_the_first_instance_norm():
    network, x = small(), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(network(2 * x + 0.5), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("num_layers", "seen"), [(0, 7), (1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_the_paper_says(num_layers, seen):
    x = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = PatchDiscriminator(channels=2, num_layers=num_layers, norm=False)(x)
    assert logits.shape[2] == 160 // 2**num_layers - 2
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, columns = (x.grad.abs().sum((0, 1)) > 0).nonzero(as_tuple=True)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (seen, seen)


def test_the_condition_image_changes_the_logits():
    network, x = PatchDiscriminator(condition_channels=2, channels=4, num_layers=1), torch.randn(2, 3, 16, 24)
    condition = torch.randn(2, 2, 16, 24)
    logits = network(x, condition=condition)
    assert logits.shape == (2, 1, 6, 10)
    assert (network(x, condition=-condition) - logits).abs().max() > 1e-3


def test_the_class_changes_every_logit_of_the_map():
    network, x = PatchDiscriminator(num_classes=2, channels=4, num_layers=1), torch.randn(2, 3, 16, 24)
    logits = network(x, LABELS)
    assert logits.shape == (2, 1, 6, 10)
    assert (network(x, 1 - LABELS) - logits).abs().min() > 0


def test_spectral_norms_hold_every_weight_at_norm_1():
    network = PatchDiscriminator(num_classes=2, channels=4, num_layers=1, norm=False, spectral=True)
    assert_spectral_norms(network, (torch.randn(2, 3, 12, 12), LABELS))


@pytest.mark.parametrize("settings", [{}, {"norm": False, "spectral": True}])
def test_a_hinge_step_reaches_every_parameter(settings):
    assert_hinge_steps(small(), PatchDiscriminator(channels=4, num_layers=2, **settings), torch.randn(2, 3, 16, 16))


def test_both_save_and_load(tmp_path):
    assert_saves_and_loads(small(), (torch.randn(2, 3, 16, 16),), tmp_path / "translator")
    discriminator = PatchDiscriminator(num_classes=2, channels=4, num_layers=1, spectral=True)
    assert_saves_and_loads(discriminator, (torch.randn(2, 3, 16, 16), LABELS), tmp_path / "discriminator")


def test_the_translator_exports():
    assert_exports(small(), (torch.randn(4, 3, 16, 24),))
