"""The noise schedule x_t = alpha(t) x_0 + sigma(t) eps, one interface for all of diffusers' schedulers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha and sigma as float64 functions of t, in the network's timestep units.

    `kind` is the mapping from t to noise:

    - `vp`: a table of N angles phi with alpha = cos(phi), sigma = sin(phi); t in [0, N - 1]. Between two integers the
      angle is interpolated linearly, which is exact at the integers and stable at zero terminal SNR.
    - `flow`: alpha = 1 - t / N, sigma = t / N; t in [0, N]. A scheduler's `shift` changes its timesteps, not this mapping.
    - `edm`: alpha = 1, sigma = exp(4 t) (Karras et al. 2022, table 1: c_noise = ln(sigma) / 4).

    `clean` is the time without noise, the end of a sampler's last step. It is never an input of a network; for `vp` it is -1,
    the integer below the table, as in diffusers' schedulers.
    """

    kind: str
    num_train_timesteps: int
    angles: Tensor | None = None  # (N,) float64, only for `vp`
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Tensor) -> NoiseSchedule:
        """A variance-preserving schedule from descending alpha_bar (N,) in [0, 1]."""
        alpha_bar = alphas_cumprod.detach().double().cpu().clamp(0, 1)
        return NoiseSchedule("vp", len(alpha_bar), torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt()))

    @staticmethod
    def from_scheduler(scheduler: Any) -> NoiseSchedule:
        """The noise schedule of any diffusers scheduler, independent of its solver.

        Raises:
            ValueError: the scheduler is neither variance-preserving nor flow matching nor EDM.
        """
        name, config = type(scheduler).__name__, scheduler.config
        if name in FLOW_MATCHING + EDM:
            return NoiseSchedule("flow" if name in FLOW_MATCHING else "edm", config.num_train_timesteps)
        if hasattr(scheduler, "alphas_cumprod"):
            require_descending(scheduler.alphas_cumprod, f"scheduler {name}")
            return NoiseSchedule.from_alphas_cumprod(torch.as_tensor(scheduler.alphas_cumprod))
        raise ValueError(
            f"scheduler {name} has no known noise schedule; expects any with `alphas_cumprod`, {', '.join(FLOW_MATCHING + EDM)}"
        )

    @property
    def clean(self) -> float:
        """The t with alpha exactly 1 and sigma exactly 0: -1 for `vp`, 0 for `flow`, -inf for `edm`."""
        return {"vp": -1.0, "flow": 0.0, "edm": -math.inf}[self.kind]

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal scale at t in [0, 1], float64, of t's shape."""
        t = _in_float64(t)
        if self.kind == "vp":
            return torch.cos(self._angle(t))
        if self.kind == "flow":
            return 1 - t / self.num_train_timesteps
        return torch.ones_like(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise scale at t, float64, of t's shape; in [0, 1] except for `edm`."""
        t = _in_float64(t)
        if self.kind == "vp":
            return torch.sin(self._angle(t))
        if self.kind == "flow":
            return t / self.num_train_timesteps
        return torch.exp(4 * t)

    def log_snr(self, t: Tensor | float) -> Tensor:
        """ln(alpha^2 / sigma^2) at t, float64; -inf without signal."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps for x_0 and noise (B, ...), t (B,); in x_0's dtype and on its device."""
        return expand_to(self.alpha(t), x_0) * x_0 + expand_to(self.sigma(t), x_0) * noise

    def perturb(self, x_s: Tensor, noise: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """x_t of the forward process from x_s, with more noise; its distribution given x_0 is that of `add_noise` at t.

        (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) eps (Kingma et al. 2021, app. A.1), for x_s
        and noise (B, ...), and s and t (B,) or (), if t has no more signal than s and alpha(s) > 0.
        """
        ratio = self.alpha(t) / self.alpha(s)
        fresh = (self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2).clamp(min=0).sqrt()
        return expand_to(ratio, x_s) * x_s + expand_to(fresh, x_s) * noise

    def _angle(self, t: Tensor) -> Tensor:
        """The angle at t, on t's device: reading t on the host would wait for the GPU."""
        angles = self._table(t.device)
        position = t.clamp(-1, len(angles) - 2) + 1
        low = position.floor().long().clamp(max=len(angles) - 2)
        return torch.lerp(angles[low], angles[low + 1], position - low)

    def _table(self, device: torch.device) -> Tensor:
        """The angles (N + 1,) of `clean` and of all timesteps on a device; each device gets them once."""
        assert self.angles is not None
        if device not in self._tables:
            table = torch.cat([torch.zeros(1, dtype=torch.float64), self.angles])
            self._tables[device] = table.to(device, non_blocking=device.type == "cuda")
        return self._tables[device]


def _in_float64(t: Tensor | float) -> Tensor:
    """t on its device, or on the CPU where the device has no float64 (MPS)."""
    t = torch.as_tensor(t)
    return (t.cpu() if t.device.type == "mps" else t).double()


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """`values` (B,) or () as (B, 1, ...) with the number of dimensions, dtype and device of `like` (B, ...)."""
    values = values.to(device=like.device, dtype=like.dtype, non_blocking=like.is_cuda)  # a copy from the host does not wait
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def require_descending(alphas_cumprod: Any, where: str) -> None:
    """Raise ValueError, which begins with `where`, unless alpha_bar (N,) is finite and falls with the timestep.

    The table is diffusers', in float32: equality with the samplers of the teachers matters more than precision.
    """
    table = torch.as_tensor(alphas_cumprod).double()
    if not table.isfinite().all():
        raise ValueError(f"{where} has a noise schedule with values that are not finite; expects betas from 0 to 1")
    steps = table.diff()
    if len(table) > 1 and (table[0] == table[-1] or (steps > 0).any()):
        t = int((steps > 0).int().argmax())
        kind = "runs backwards" if steps[t] > 0 else "is constant"
        raise ValueError(
            f"{where} has a noise schedule that {kind}: alpha_bar is {float(table[t]):.4g} at timestep {t} and "
            f"{float(table[t + 1]):.4g} at {t + 1}; expects an alpha_bar that falls, from betas between 0 and 1"
        )
