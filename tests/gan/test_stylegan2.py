from itertools import combinations

import pytest
import torch
from network_checks import assert_exports, assert_hinge_steps, assert_saves_and_loads

from gendistill.gan.architectures.stylegan2 import (
    StyledConv,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    Truncation,
    minibatch_deviation,
)

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def small(num_classes=3, **settings):
    return StyleGAN2Generator(6, num_classes, (8, 8, 4), 2, **settings)


@pytest.mark.parametrize(("channels", "edge"), [((8,), 4), ((8, 4), 8), ((8, 8, 8, 4), 32)])
def test_each_width_after_the_first_doubles_the_edge_from_4(channels, edge):
    images = StyleGAN2Generator(6, 0, channels, 2, out_channels=2)(torch.randn(3, 6))
    assert images.shape == (3, 2, edge, edge)
    assert StyleGAN2Discriminator(edge, 0, channels[::-1], 2)(images).shape == (3,)


@pytest.mark.parametrize("resolution", [30, 2])
def test_a_resolution_that_the_channels_do_not_divide_is_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution {resolution}: expects a multiple of 4 with 3 channels"):
        StyleGAN2Discriminator(resolution, channels=(4, 4, 4))


def test_the_class_and_the_noise_change_the_image():
    network, z = small().eval(), torch.randn(4, 6)
    images = [network(z, torch.full((4,), label)) for label in range(3)]
    assert min((a - b).abs().amax((1, 2, 3)).min() for a, b in combinations(images, 2)) > 1e-3
    assert (network(-z, LABELS) - network(z, LABELS)).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_size_of_the_noise_vector_does_not_matter():
    network, z = small().eval(), torch.randn(4, 6)
    torch.testing.assert_close(network(3 * z, LABELS), network(z, LABELS), rtol=1e-4, atol=1e-5)


def test_a_generator_is_a_function_unless_its_noise_is_random():
    z = torch.randn(4, 6)
    for random_noise in (False, True):
        network = small(random_noise=random_noise).eval()
        for layer in network.modules():
            if isinstance(layer, StyledConv):
                torch.nn.init.ones_(layer.strength)
        assert torch.equal(network(z, LABELS), network(z, LABELS)) != random_noise


def test_truncation_moves_w_towards_its_mean_in_eval_mode_alone():
    truncation, w = Truncation(5, 0.7), torch.randn(8, 5)
    truncation.running_mean.copy_(torch.randn(5))
    mean = truncation.running_mean.clone()
    torch.testing.assert_close(truncation.eval()(w), mean + 0.7 * (w - mean))
    assert torch.equal(truncation.running_mean, mean)
    assert torch.equal(truncation.train()(w), w)
    torch.testing.assert_close(truncation.running_mean, mean + 0.005 * (w.mean(0) - mean))
    assert torch.equal(truncation(w[:1]), w[:1])  # a batch of one image


def test_without_any_psi_every_noise_makes_the_image_of_the_mean():
    network = small(truncation_psi=0.0)
    for _ in range(3):
        network(torch.randn(4, 6), LABELS)
    images = network.eval()(torch.randn(4, 6), LABELS)
    torch.testing.assert_close(images, images[:1].expand(4, -1, -1, -1))
    network.truncation.psi = 1
    assert (network(torch.randn(4, 6), LABELS) - images).abs().max() > 1e-3


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4)])
def test_the_minibatch_deviation_is_the_mean_deviation_within_groups(batch, size):
    x = torch.randn(batch, 3, 2, 5)
    made = minibatch_deviation(x)
    assert torch.equal(made[:, :3], x)
    groups = batch // size
    for k in range(batch):
        mates = x[[j for j in range(batch) if j % groups == k % groups]]
        assert len(mates) == size
        expected = ((mates - mates.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(made[k, 3], expected.expand(2, 5))


def test_a_discriminator_sees_that_all_images_are_one():
    network, x = StyleGAN2Discriminator(8, 0, (4, 8)), torch.randn(4, 3, 8, 8)
    alone = network(x[:1])
    torch.testing.assert_close(network(x[:1].expand(4, -1, -1, -1)), alone.expand(4))
    assert (network(x)[0] - alone).abs() > 1e-3


def test_the_class_changes_the_logit_by_its_projection():
    network, x, features = StyleGAN2Discriminator(8, 3, (4, 9)), torch.randn(4, 3, 8, 8), []
    network.logit.register_forward_hook(lambda layer, inputs, logit: features.append(inputs[0]))
    logits = network(x, LABELS)
    expected = (network.classes.weight[LABELS] * features[0]).sum(1) / 3  # sqrt(9)
    torch.nn.init.zeros_(network.classes.weight)
    torch.testing.assert_close(logits - network(x, LABELS), expected)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_hinge_step_reaches_every_parameter(num_classes):
    discriminator = StyleGAN2Discriminator(16, num_classes, (4, 8, 8))
    assert_hinge_steps(small(num_classes), discriminator, torch.randn(4, 6), LABELS if num_classes else None)


def test_the_slope_penalty_has_finite_gradients_even_where_images_do_not_differ():
    network = StyleGAN2Discriminator(8, 0, (4, 8))
    x = torch.zeros(4, 3, 8, 8, requires_grad=True)
    slope = torch.autograd.grad(network(x).sum(), x, create_graph=True)[0]
    slope.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_a_image_at_the_start_of_training_has_a_deviation_near_1():
    # Equalised weights and demodulation keep the variance of features at about 1 whatever the widths; the skips add images.
    for width in (16, 128):
        network = StyleGAN2Generator(32, 0, (width,), 2).eval()
        assert 0.5 < network(torch.randn(64, 32)).std() < 2


def test_both_save_and_load(tmp_path):
    network = small(truncation_psi=0.5)
    network(torch.randn(4, 6), LABELS)  # the mean of w is saved too
    assert_saves_and_loads(network, (torch.randn(4, 6), LABELS), tmp_path / "generator")
    discriminator = StyleGAN2Discriminator(8, 3, (4, 8))
    assert_saves_and_loads(discriminator, (torch.randn(4, 3, 8, 8), LABELS), tmp_path / "discriminator")


@pytest.mark.parametrize("psi", [1.0, 0.5])
def test_the_generator_exports(psi):
    network = small(truncation_psi=psi)
    network(torch.randn(4, 6), LABELS)
    assert_exports(network, (torch.randn(4, 6), LABELS))
