"""Grids of timesteps: which t a sampler of N steps visits, as diffusers defines them.

Each is (N,) int64 and falls, but for `skipping`, on which consistency distillation trains.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gendistill.schedulers.noise import NoiseSchedule

SIGMA_AT_ZERO_SNR = 2.0**12  # what diffusers' solvers put in the place of an infinite sigma / alpha


def trailing(num_inference_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """(N,) int64, falling, from the last trained timestep on: 4 of 1000 -> 999, 749, 499, 249.

    The grid of few-step students: it starts at the noise that the sampler draws (Lin et al. 2024, table 2).
    """
    ratio = num_train_timesteps / num_inference_steps
    grid = np.round(np.arange(num_train_timesteps, 0, -ratio)).astype(np.int64) - 1
    return torch.from_numpy(grid[:num_inference_steps])


def leading(num_inference_steps: int, num_train_timesteps: int = 1000, steps_offset: int = 0) -> Tensor:
    """(N,) int64, falling to `steps_offset`: 4 of 1000 -> 750, 500, 250, 0 (Ho et al. 2020; Lin et al. 2024, table 2).

    It never visits the last timesteps: few steps of it start at less noise than the sampler draws.
    """
    return torch.arange(num_inference_steps).flip(0) * (num_train_timesteps // num_inference_steps) + steps_offset


def linspace(num_inference_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """(N,) int64, falling, with both ends: 4 of 1000 -> 999, 666, 333, 0 (Nichol & Dhariwal 2021; Lin et al. 2024, table 2).

    Its last step, from timestep 0, changes next to nothing; one step is timestep 0 alone, as in diffusers.
    """
    return torch.from_numpy(np.linspace(0, num_train_timesteps - 1, num_inference_steps).round().astype(np.int64)).flip(0)


def uniform_log_snr(num_inference_steps: int, schedule: NoiseSchedule) -> Tensor:
    """(N,) int64, falling, with both ends and as equal steps in log SNR between them as integers allow.

    Lu et al. 2022 (DPM-Solver), section 3.3; `use_lu_lambdas` of diffusers' solvers.

    Args:
        schedule: of kind `vp`.

    Raises:
        ValueError: the schedule has no table of timesteps, or less of them than steps.
    """
    log_sigmas = _log_sigmas(schedule)
    return _distinct_timesteps(np.linspace(log_sigmas[-1], log_sigmas[0], num_inference_steps), log_sigmas)


def karras(num_inference_steps: int, schedule: NoiseSchedule, rho: float = 7.0) -> Tensor:
    """(N,) int64, falling, with both ends and as equal steps in (sigma / alpha)^(1 / rho) as integers allow.

    Karras et al. 2022, eq. 5, between the schedule's own ends; `use_karras_sigmas` of diffusers' solvers.

    Args, Raises: as for `uniform_log_snr`.
    """
    log_sigmas = _log_sigmas(schedule)
    sigmas = np.linspace(np.exp(log_sigmas[-1] / rho), np.exp(log_sigmas[0] / rho), num_inference_steps) ** rho
    return _distinct_timesteps(np.log(sigmas), log_sigmas)


def skipping(num_ddim_timesteps: int, num_train_timesteps: int = 1000) -> Tensor:
    """(K,) int64, rising: the solver grid of consistency distillation, 50 of 1000 -> 19, 39, ..., 999.

    Luo et al. 2023, section 4.3, with k = num_train_timesteps / K; the grid of diffusers' LCM training script.
    """
    return torch.arange(1, num_ddim_timesteps + 1) * (num_train_timesteps // num_ddim_timesteps) - 1


def _log_sigmas(schedule: NoiseSchedule) -> NDArray[np.float64]:
    """ln(sigma / alpha) at every timestep, (num_train_timesteps,), rising."""
    if schedule.kind != "vp":
        raise ValueError(f"a noise schedule of kind {schedule.kind} has no table of timesteps; takes vp")
    log_snr = schedule.log_snr(torch.arange(schedule.num_train_timesteps))
    return np.minimum(-log_snr.numpy() / 2, np.log(SIGMA_AT_ZERO_SNR))


def _distinct_timesteps(wanted: NDArray[np.float64], log_sigmas: NDArray[np.float64]) -> Tensor:
    """The timesteps nearest to falling values of ln(sigma / alpha), moved apart where two of them are one."""
    count, table = len(wanted), len(log_sigmas)
    if count > table:
        raise ValueError(f"{count} steps: takes at most the {table} timesteps that the network was trained at")
    t = np.interp(wanted, log_sigmas, np.arange(table)).round().astype(np.int64)
    places = np.arange(count)
    t = np.minimum.accumulate(t + places) - places  # each at least one below the one before
    return torch.from_numpy(np.maximum(t, places[::-1]))
