"""Steps of solvers, each one pure function that follows its paper."""

from __future__ import annotations

from torch import Tensor

from gendistill.schedulers import NoiseSchedule, expand_to


def ddim_step(x_0: Tensor, eps: Tensor, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_s = alpha(s) x_0 + sigma(s) eps: the deterministic DDIM step to time s (Song et al. 2021, eq. 12 with sigma_t = 0).

    Args:
        x_0, eps: (B, ...), the prediction at the current time t.
        s: (B,), the next time, in the network's timestep units.
    """
    return expand_to(schedule.alpha(s), x_0) * x_0 + expand_to(schedule.sigma(s), eps) * eps


def invert_ddim_step(x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The x_0 and eps (B, ...) whose DDIM step leads from x_t (B, ...) at t (B,) to x_s at s, the inverse of `ddim_step`.

    x_t = alpha_t x_0 + sigma_t eps and x_s = alpha_s x_0 + sigma_s eps are solved for both. The only divisor is
    alpha_s sigma_t - alpha_t sigma_s, which is positive if s has more signal than t, also at zero terminal SNR and at `clean`.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    determinant = alpha_s * sigma_t - alpha_t * sigma_s
    a_t, b_t, a_s, b_s = (expand_to(scale / determinant, x_t) for scale in (alpha_t, sigma_t, alpha_s, sigma_s))
    return b_t * x_s - b_s * x_t, a_s * x_t - a_t * x_s
