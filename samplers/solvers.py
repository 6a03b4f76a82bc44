"""One step of a solver = one pure function, to be held beside its paper."""

from __future__ import annotations

from torch import Tensor

from gendistill.schedulers import NoiseSchedule, expand_to


def ddim_step(x_0: Tensor, eps: Tensor, s: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_s = alpha(s) x_0 + sigma(s) eps: the deterministic DDIM step to time s (Song et al. 2021, eq. 12 with sigma_t = 0).

    Args:
        x_0, eps: (B, ...), the two halves of a prediction at the time t that the step leaves.
        s: (B,), the time it goes to, in the network's timestep units.
    """
    return expand_to(schedule.alpha(s), x_0) * x_0 + expand_to(schedule.sigma(s), eps) * eps
