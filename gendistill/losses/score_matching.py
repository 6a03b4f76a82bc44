"""Losses of two scores: that of the data, known from a teacher, and that of a student's own samples, learned by a fake score.

Scores are written as predictions: s(x_t) = -eps / sigma, so that s_fake - s_real = alpha (fake x_0 - real x_0) / sigma^2. All
functions compute in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gendistill.losses.numerics import check_shapes
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to

# h(r) = r^2 f''(r) of the f-divergence E_q f(p / q), r = p / q, p the data and q the student (Xu et al. 2025, table 1)
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,  # f = -log r
    "forward_kl": lambda r: r,  # f = r log r
    "jeffreys": lambda r: 1 + r,  # f = (r - 1) log r
    "jensen_shannon": lambda r: r / (1 + r),  # f = r log r - (r + 1) log((r + 1) / 2)
    "softened_reverse_kl": lambda r: 1 / (1 + r),  # f = (r + 1) log(1 / 2 + 1 / (2 r))
    "squared_hellinger": lambda r: r.sqrt() / 4,  # f = 1 - sqrt(r)
}


def divergence_weights(logits: Tensor, divergence: str) -> Tensor:
    """h(r) (B,) of an f-divergence at r = exp(logits), divided by its mean over the batch (Xu et al. 2025).

    Args:
        logits: (B,), those of a discriminator trained with the logistic loss, log p / q; limited to [-10, 10].
        divergence: a name in `DIVERGENCES`.
    """
    weights = DIVERGENCES[divergence](logits.float().clamp(-10, 10).exp())
    return weights / weights.mean()


def reverse_kl_gradient(x_0: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """The gradient (B, ...) of KL(student | data) with respect to the student's samples (Yin et al. 2024, equations 7 and 8).

    (fake x_0 - real x_0) / mean |x_0 - real x_0|, the mean of each sample: the weight w_t of equation 8 without its factor
    alpha_t, as in the code of both papers.

    Args:
        x_0: (B, ...), samples of the student.
        fake, real: (B, ...), x_0 as predicted from the same noisy samples by the fake score and by the teacher.
    """
    check_shapes(fake, real, "fake")
    distance = (x_0 - real).abs().flatten(1).mean(1).clamp(min=1e-6)
    return (fake - real) / expand_to(distance, real)


def loss_with_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """|x - stop(x - gradient)|^2 / 2, the mean over all N elements: a scalar; its gradient at x is gradient / N."""
    return (x - (x - gradient).detach()).square().mean() / 2


def forward_process(
    x_s: Tensor, noise: Tensor, s: Tensor, t: Tensor, schedule: NoiseSchedule
) -> tuple[Tensor, Prediction, Tensor]:
    """x_t (B, ...) of the forward process from x_s, the prediction with the score of q(x_t | x_s), and its weight (B,).

    The score of all x_t is the mean of these scores (Vincent 2011), so that a denoiser that fits these predictions learns it:

        x_t = a x_s + b noise,  a = alpha_t / alpha_s,  b^2 = sigma_t^2 - a^2 sigma_s^2
        eps = (sigma_t / b) noise,  x_0 = x_s / alpha_s - (alpha_t sigma_s^2 / (alpha_s^2 b)) noise

    The weight b^2 / sigma_t^2 keeps the variance of eps at 1. From s = `clean` it is the denoising loss: x_s, noise and 1.

    Args:
        x_s, noise: (B, ...); noise of unit variance.
        s, t: (B,), t with less signal than s, alpha(s) > 0.
    """
    alpha_s, sigma_s, alpha_t, sigma_t = schedule.alpha(s), schedule.sigma(s), schedule.alpha(t), schedule.sigma(t)
    a = alpha_t / alpha_s
    b = (sigma_t**2 - (a * sigma_s) ** 2).sqrt()
    x_t = expand_to(a, x_s) * x_s + expand_to(b, x_s) * noise
    x_0 = x_s / expand_to(alpha_s, x_s) - expand_to(alpha_t * sigma_s**2 / (alpha_s**2 * b), x_s) * noise
    return x_t, Prediction(x_0, expand_to(sigma_t / b, x_s) * noise), (b / sigma_t) ** 2
