"""The noise schedule x_t = alpha(t) x_0 + sigma(t) eps, one interface for all of diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha and sigma as float64 functions of t, an index on the schedule's own grid of N timesteps.

    t is in [0, N - 1], and -1 is `clean`, the end of a sampler's last step, which is never an input of a network. Equal steps
    of t are the steps of the teacher's samplers, so that the grids of all methods are grids of t for every kind of schedule:

    - `vp`: a table of N angles phi with alpha = cos(phi), sigma = sin(phi). Between two integers the angle is interpolated
      linearly, which is exact at the integers and stable at zero terminal SNR.
    - `flow`: alpha = 1 - sigma and sigma = shift u / (1 + (shift - 1) u) with u = (t + 1) / N (Esser et al. 2024, eq. 23).
    - `edm`: `vp` with phi = atan(sigma / sigma_data) on the sigmas of the scheduler (Karras et al. 2022, eq. 5), for samples
      that are divided by `sigma_data`.

    A network gets `network_time(t)`.
    """

    kind: str
    num_train_timesteps: int
    angles: Tensor | None = None  # (N,) float64, not for `flow`
    shift: float = 1.0  # only for `flow`
    sigma_data: float = 1.0  # only for `edm`
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Tensor) -> NoiseSchedule:
        """A variance-preserving schedule from descending alpha_bar (N,) in [0, 1]."""
        alpha_bar = alphas_cumprod.detach().double().cpu().clamp(0, 1)
        return NoiseSchedule("vp", len(alpha_bar), torch.atan2((1 - alpha_bar).sqrt(), alpha_bar.sqrt()))

    @staticmethod
    def from_scheduler(scheduler: Any, image_tokens: int | None = None) -> NoiseSchedule:
        """The noise schedule of any diffusers scheduler, independent of its solver.

        Args:
            image_tokens: the network's number of tokens for an image, from which schedulers with `use_dynamic_shifting` have
                their shift.

        Raises:
            ValueError: the scheduler is neither variance-preserving nor flow matching nor EDM, or its shift is not known.
        """
        name, config = type(scheduler).__name__, scheduler.config
        if is_flow(scheduler):
            return NoiseSchedule("flow", config.num_train_timesteps, shift=shift_of(config, image_tokens))
        if is_edm(scheduler):
            angles = torch.atan(edm_sigmas(config) / config.sigma_data)
            return NoiseSchedule("edm", config.num_train_timesteps, angles, sigma_data=config.sigma_data)
        if hasattr(scheduler, "alphas_cumprod"):
            require_descending(scheduler.alphas_cumprod, f"scheduler {name}")
            return NoiseSchedule.from_alphas_cumprod(torch.as_tensor(scheduler.alphas_cumprod))
        raise ValueError(
            f"scheduler {name} has no known noise schedule; expects any with `alphas_cumprod`, {', '.join(FLOW_MATCHING + EDM)}"
        )

    @property
    def clean(self) -> int:
        """The t with alpha exactly 1 and sigma exactly 0."""
        return -1

    def alpha(self, t: Tensor | float) -> Tensor:
        """Signal scale at t in [0, 1], float64, of t's shape."""
        t = _in_float64(t)
        return 1 - self._flow_sigma(t) if self.kind == "flow" else torch.cos(self._angle(t))

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise scale at t in [0, 1], float64, of t's shape."""
        t = _in_float64(t)
        return self._flow_sigma(t) if self.kind == "flow" else torch.sin(self._angle(t))

    def network_time(self, t: Tensor) -> Tensor:
        """The time at t that is the network's input, as in diffusers' pipelines.

        t itself for `vp`, N sigma(t) for `flow`, and ln(sigma) / 4 for `edm` (Karras et al. 2022, table 1).
        """
        if self.kind == "vp":
            return t
        time = self.num_train_timesteps * self.sigma(t)
        if self.kind == "edm":
            time = (self.sigma_data * torch.tan(self._angle(_in_float64(t)))).log() / 4
        return time.to(t.device, torch.float32)

    def index_of(self, network_time: Tensor) -> Tensor:
        """The t of a `network_time`, its inverse."""
        if self.kind == "vp":
            return network_time
        time = _in_float64(network_time)
        if self.kind == "flow":
            sigma = time / self.num_train_timesteps
            return sigma / (self.shift - (self.shift - 1) * sigma) * self.num_train_timesteps - 1
        table, angle = self._table(time.device), torch.atan((4 * time).exp() / self.sigma_data)
        high = torch.searchsorted(table, angle).clamp(1, len(table) - 1)
        return high - 2 + (angle - table[high - 1]) / (table[high] - table[high - 1])

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

    def _flow_sigma(self, t: Tensor) -> Tensor:
        u = (t + 1) / self.num_train_timesteps
        return self.shift * u / (1 + (self.shift - 1) * u)

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


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler is one of flow matching, as DPM-Solver is with `use_flow_sigmas`."""
    return type(scheduler).__name__ in FLOW_MATCHING or bool(scheduler.config.get("use_flow_sigmas"))


def is_edm(scheduler: Any) -> bool:
    """Whether a diffusers scheduler is one of EDM (Karras et al. 2022)."""
    return type(scheduler).__name__ in EDM


def sigma_data_of(scheduler: Any) -> float:
    """The standard deviation of the data in the units of a diffusers scheduler, by which they are divided; 1 without EDM."""
    return float(scheduler.config.sigma_data) if is_edm(scheduler) else 1.0


def shift_of(config: Mapping[str, Any], image_tokens: int | None = None) -> float:
    """The shift of a flow-matching scheduler's timesteps, fixed or by the number of the image's tokens.

    Raises:
        ValueError: the shift is dynamic and the number of tokens is not known.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift", 1.0)))
    if image_tokens is None:
        raise ValueError("scheduler: use_dynamic_shifting needs the size of the images; expects a model with a known size")
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else float(mu)


def edm_sigmas(config: Mapping[str, Any]) -> Tensor:
    """The ascending sigmas (N,) float64 of the N timesteps of an EDM scheduler with that config."""
    ramp = torch.linspace(0, 1, config["num_train_timesteps"], dtype=torch.float64)
    low, high, rho = config["sigma_min"], config["sigma_max"], config["rho"]
    if config["sigma_schedule"] == "exponential":
        return torch.exp(math.log(low) + ramp * math.log(high / low))
    first, last = (torch.tensor(edge ** (1 / rho), dtype=torch.float64) for edge in (low, high))
    return torch.lerp(first, last, ramp) ** rho


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
