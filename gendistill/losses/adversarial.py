"""Adversarial losses of generator and discriminator, and gradient penalties on the discriminator.

Logits have any shape, one per image (B,) or one per patch (B, 1, h, w); a large logit means "real". The penalties compute the
discriminator in float32: their inner gradients are neither scaled, nor computed outside of autocast, as those of a loss are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import in_float32

Criterion = Callable[[Tensor], Tensor]

KINDS: dict[str, tuple[Criterion, Criterion, Criterion]] = {  # discriminator's on real, on generated; generator's
    "hinge": (lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake), torch.neg),
    "logistic": (lambda real: F.softplus(-real), F.softplus, lambda fake: F.softplus(-fake)),
    "least_squares": (lambda real: (real - 1).square(), torch.square, lambda fake: (fake - 1).square()),
    "wasserstein": (torch.neg, lambda fake: fake, torch.neg),
}


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "hinge") -> Tensor:
    """The discriminator's loss, a scalar, to be minimised.

    - `hinge`: E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (Lim & Ye 2017; Miyato et al. 2018, eq. 16).
    - `logistic`: -E log sigmoid D(x) - E log sigmoid(-D(G(z))) (Goodfellow et al. 2014).
    - `least_squares`: E (D(x) - 1)^2 + E D(G(z))^2 (Mao et al. 2017, eq. 9).
    - `wasserstein`: E D(G(z)) - E D(x) (Arjovsky et al. 2017); needs a gradient penalty or spectral normalisation.
    """
    real_loss, fake_loss, _ = _losses(kind)
    return real_loss(real.float()).mean() + fake_loss(fake.float()).mean()


def generator_loss(fake: Tensor, kind: str = "hinge") -> Tensor:
    """The generator's loss, a scalar, to be minimised: -E D(G(z)) for `hinge` and `wasserstein`, -E log sigmoid D(G(z)) for
    `logistic` (the non-saturating form), E (D(G(z)) - 1)^2 for `least_squares`."""
    return _losses(kind)[2](fake.float()).mean()


@in_float32
def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E |grad_x D(x)|^2 / 2 on real images (B, C, H, W), a scalar (Mescheder et al. 2018, eq. 9 with gamma = 1)."""
    return _input_gradient(discriminator, real).square().sum(1).mean() / 2


@in_float32
def approximate_r1_penalty(logits: Tensor, moved: Tensor, deviation: float) -> Tensor:
    """E (D(x + s n) - D(x))^2 / (2 s^2), n standard normal, a scalar: `r1_penalty` of each logit as s goes to 0, without a
    gradient within the loss (Lin et al. 2025).

    Args:
        logits, moved: D(x) and D(x + s n) of any shape, on real samples.
        deviation: the standard deviation s.
    """
    return ((moved - logits) / deviation).square().mean() / 2


@in_float32
def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, real_fraction: Tensor) -> Tensor:
    """E (|grad_x D(x)| - 1)^2 between real and generated images, a scalar (Gulrajani et al. 2017, eq. 3 with lambda = 1).

    Args:
        real_fraction: (B,) in [0, 1), the weight of the real image in each interpolate (the paper's epsilon).
    """
    epsilon = real_fraction.to(real)[:, None, None, None]
    return (_input_gradient(discriminator, epsilon * real + (1 - epsilon) * fake).norm(dim=1) - 1).square().mean()


def discriminator_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Fraction of (real, generated) pairs in which the real image has the larger logit, 0-d in [0, 1].

    0.5 is chance, 1 a saturated discriminator.
    """
    real, fake = (logits.flatten(1).mean(1) if logits.ndim > 1 else logits for logits in (real, fake))
    return (real[:, None] > fake).float().mean()


def _input_gradient(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, C * H * W): the gradient of each image's logit with respect to the image."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)[0].flatten(1)


def _losses(kind: str) -> tuple[Criterion, Criterion, Criterion]:
    if kind not in KINDS:
        raise ValueError(f"adversarial loss {kind!r} is not known; expects one of {', '.join(KINDS)}")
    return KINDS[kind]
