import math

import pytest
import torch

from gendistill.losses.adversarial import (
    KINDS,
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    r1_penalty,
)

REAL, FAKE = torch.tensor([2.0, -0.5]), torch.tensor([-3.0, 0.25])


def log_sigmoid(value):
    return -math.log1p(math.exp(-value))


BY_HAND = {
    "hinge": ((0 + 1.5) / 2 + (0 + 1.25) / 2, -(-3 + 0.25) / 2),
    "logistic": (
        -(log_sigmoid(2) + log_sigmoid(-0.5)) / 2 - (log_sigmoid(3) + log_sigmoid(-0.25)) / 2,
        -(log_sigmoid(-3) + log_sigmoid(0.25)) / 2,
    ),
    "least_squares": ((1 + 2.25) / 2 + (9 + 0.0625) / 2, (16 + 0.5625) / 2),
    "wasserstein": ((-3 + 0.25) / 2 - (2 - 0.5) / 2, -(-3 + 0.25) / 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_losses_are_those_of_the_paper(kind):
    of_discriminator, of_generator = BY_HAND[kind]
    torch.testing.assert_close(discriminator_loss(REAL, FAKE, kind), torch.tensor(of_discriminator))
    torch.testing.assert_close(generator_loss(FAKE, kind), torch.tensor(of_generator))


@pytest.mark.parametrize("kind", KINDS)
def test_one_side_wants_a_larger_logit_of_the_made_image_and_the_other_a_smaller_one(kind):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    to_real, to_fake = torch.autograd.grad(discriminator_loss(real, fake, kind), (real, fake), allow_unused=True)
    assert (to_real < 0).all()
    assert (to_fake >= 0).all()
    assert (torch.autograd.grad(generator_loss(fake, kind), fake)[0] < 0).all()
    if kind != "least_squares":  # whose made images are at their best at 0
        assert (to_fake > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_patches_count_as_images_do(kind, generator):
    real, fake = torch.randn(2, 4, 1, 3, 5, generator=generator)
    patches = discriminator_loss(real, fake, kind), generator_loss(fake, kind)
    flat = discriminator_loss(real.flatten(), fake.flatten(), kind), generator_loss(fake.flatten(), kind)
    torch.testing.assert_close(patches, flat)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_half_precision_are_computed_in_float32(kind):
    large = torch.tensor([300.0, -300.0]).half()  # whose squares float16 does not hold
    for loss in (discriminator_loss(large, -large, kind), generator_loss(large, kind)):
        assert loss.dtype == torch.float32
        assert loss.isfinite()


@pytest.mark.parametrize("loss", [lambda kind: discriminator_loss(REAL, FAKE, kind), lambda kind: generator_loss(FAKE, kind)])
def test_an_unknown_loss_is_refused_with_the_known_ones(loss):
    with pytest.raises(ValueError, match="'hinged' is not known; expects one of hinge, logistic, least_squares, wasserstein"):
        loss("hinged")


def linear(weight):
    return lambda x: (x * weight).sum((1, 2, 3)) + 5


@pytest.fixture
def weight(generator):
    return torch.randn(3, 4, 6, generator=generator)


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm(weight, generator):
    real = torch.randn(7, 3, 4, 6, generator=generator)
    torch.testing.assert_close(r1_penalty(linear(weight), real), weight.square().sum() / 2)


def test_r1_of_a_quadratic_discriminator_is_half_the_mean_squared_norm_of_the_images(generator):
    real = torch.randn(7, 3, 4, 6, generator=generator)
    penalty = r1_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real)  # its slope at x is x
    torch.testing.assert_close(penalty, real.square().sum((1, 2, 3)).mean() / 2)


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_the_gradient_penalty_of_a_linear_discriminator_is_how_far_its_norm_is_from_1(weight, norm, generator):
    real, fake = torch.randn(2, 7, 3, 4, 6, generator=generator)
    penalty = gradient_penalty(linear(norm * weight / weight.norm()), real, fake, torch.rand(7, generator=generator))
    torch.testing.assert_close(penalty, torch.tensor((norm - 1) ** 2), atol=1e-5, rtol=1e-5)


def test_the_gradient_penalty_is_taken_at_the_interpolate_of_each_pair(generator):
    real, fake = torch.randn(2, 3, 1, 2, 2, generator=generator)
    real_fraction = torch.tensor([0.0, 0.25, 1.0])
    at = torch.stack([fake[0], 0.25 * real[1] + 0.75 * fake[1], real[2]])
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, real_fraction)
    torch.testing.assert_close(penalty, (at.flatten(1).norm(dim=1) - 1).square().mean())


def test_penalties_teach_the_discriminator_and_leave_the_images_alone(weight, generator):
    real, fake = (torch.randn(2, 3, 4, 6, generator=generator).requires_grad_() for _ in range(2))
    weight.requires_grad_()
    (r1_penalty(linear(weight), real) + gradient_penalty(linear(weight), real, fake, torch.rand(2))).backward()
    torch.testing.assert_close(weight.grad, (weight + 2 * (1 - 1 / weight.norm()) * weight).detach())
    assert real.grad is None
    assert fake.grad is None


def test_a_penalty_of_patches_is_that_of_their_sum(weight, generator):
    real = torch.randn(2, 3, 4, 6, generator=generator)
    patches = r1_penalty(lambda x: (x * weight).sum(1, keepdim=True), real)
    torch.testing.assert_close(patches, r1_penalty(linear(weight), real))


def test_accuracy_is_the_fraction_of_pairs_in_which_the_real_image_has_the_larger_logit():
    assert discriminator_accuracy(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])) == 0.75
    assert discriminator_accuracy(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])) == 1
    assert discriminator_accuracy(torch.tensor([0.0]), torch.tensor([0.0, 1.0, 2.0])) == 0


def test_accuracy_compares_images_by_the_mean_logit_of_their_patches():
    real = torch.tensor([[3.0, -1.0], [0.0, 0.0]]).view(2, 1, 1, 2)  # means 1 and 0
    fake = torch.tensor([[9.0, -9.0], [0.5, 0.5]]).view(2, 1, 1, 2)  # means 0 and 0.5
    assert discriminator_accuracy(real, fake) == 0.5


def test_accuracy_between_equal_distributions_is_one_half(generator):
    real, fake = torch.randn(2, 2000, generator=generator)
    assert discriminator_accuracy(real, fake).item() == pytest.approx(0.5, abs=0.03)
