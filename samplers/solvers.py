"""Steps of solvers, each one pure function that follows its paper."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gendistill.schedulers import NoiseSchedule, Prediction, expand_to


def ddim_step(x_0: Tensor, eps: Tensor, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_s = alpha(s) x_0 + sigma(s) eps: the deterministic DDIM step to time s (Song et al. 2021, eq. 12 with sigma_t = 0).

    Args:
        x_0, eps: (B, ...), the prediction at the current time t.
        s: (B,), the next time, in the network's timestep units.
    """
    return expand_to(schedule.alpha(s), x_0) * x_0 + expand_to(schedule.sigma(s), eps) * eps


def noisy_step(prediction: Prediction, noise: Tensor, s: Tensor, schedule: NoiseSchedule, eta: float) -> Tensor:
    """x_s of a step with a fraction `eta` of fresh noise: DDIM to (1 - eta) s, then the forward process to s.

    Algorithm 2 of Zheng et al. 2024 (TCD), whose gamma is eta. With 1 it adds noise to x_0 itself (LCM, Luo et al. 2023,
    algorithm 3), with 0 it is `ddim_step`. At `clean` it is x_0.

    Args:
        noise: (B, ...), of unit variance.
        s: (B,), the next time.
    """
    below = ((1 - eta) * (s + 1)).floor() - 1
    return schedule.perturb(ddim_step(prediction.x_0, prediction.eps, below, schedule), noise, below, s)


def dpm_solver_path(
    predict: Callable[[Tensor, Tensor], Prediction], noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """All points (B, N + 1, ...) of DPM-Solver++(2M) from `noise` (B, ...) to `clean` (Lu et al. 2022b, algorithm 2).

    The first and the last step are of first order, as in diffusers. Coefficients are computed in float64.

    Args:
        predict: (x_t (B, ...), t (B,)) -> x_0 and eps.
        timesteps: (N,), descending.
    """
    times = torch.cat([timesteps.double(), torch.tensor([schedule.clean])])
    alpha, sigma, half_log_snr = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times) / 2
    points, before = [noise], noise
    for i, t in enumerate(timesteps.to(noise.device)):
        x_t, x_0 = points[-1], predict(points[-1], t.expand(len(noise))).x_0
        direction = x_0
        if 0 < i < len(timesteps) - 1:
            h, h_before = half_log_snr[i + 1] - half_log_snr[i], half_log_snr[i] - half_log_snr[i - 1]
            direction = x_0 + float(h / (2 * h_before)) * (x_0 - before)
        ratio = sigma[i + 1] / sigma[i]
        points.append(float(ratio) * x_t + float(alpha[i + 1] - alpha[i] * ratio) * direction)
        before = x_0
    return torch.stack(points, 1)


def invert_ddim_step(x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The x_0 and eps (B, ...) whose DDIM step leads from x_t (B, ...) at t (B,) to x_s at s, the inverse of `ddim_step`.

    x_t = alpha_t x_0 + sigma_t eps and x_s = alpha_s x_0 + sigma_s eps are solved for both. The only divisor is
    alpha_s sigma_t - alpha_t sigma_s, which is positive if s has more signal than t, also at zero terminal SNR and at `clean`.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    determinant = alpha_s * sigma_t - alpha_t * sigma_s
    a_t, b_t, a_s, b_s = (expand_to(scale / determinant, x_t) for scale in (alpha_t, sigma_t, alpha_s, sigma_s))
    return b_t * x_s - b_s * x_t, a_s * x_t - a_t * x_s
