"""Grids of timesteps for sampling in N steps and for training in consistency distillation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def trailing(num_inference_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """The trailing grid (N,) int64, descending from the last trained timestep: 4 of 1000 -> 999, 749, 499, 249.

    It is the grid of few-step students, as it starts at the time of the sampler's initial noise (Lin et al. 2024, table 2).
    """
    ratio = num_train_timesteps / num_inference_steps
    grid = np.round(np.arange(num_train_timesteps, 0, -ratio)).astype(np.int64) - 1
    return torch.from_numpy(grid[:num_inference_steps])


def nearest_divisors(count: int, num_train_timesteps: int = 1000) -> list[int]:
    """The divisors of `num_train_timesteps` that are nearest to `count` on both sides, without 1: 300 -> 250, 500."""
    divisors = [number for number in range(2, num_train_timesteps + 1) if num_train_timesteps % number == 0]
    below = [number for number in divisors if number <= count][-1:]
    above = [number for number in divisors if number >= count][:1]
    return sorted({*below, *above})


def nested(num_inference_steps: int, grid: Tensor) -> Tensor:
    """The sampling grid (N,) of diffusers' schedulers for LCM and TCD: timesteps of a solver grid (K,), descending.

    The solver grid is ascending.
    """
    positions = np.floor(np.linspace(0, len(grid), num=num_inference_steps, endpoint=False)).astype(np.int64)
    return grid.flip(0)[torch.from_numpy(positions)]


def skipping(num_ddim_timesteps: int, num_train_timesteps: int = 1000) -> Tensor:
    """The solver grid of consistency distillation (K,) int64, ascending: 50 of 1000 -> 19, 39, ..., 999. K divides N.

    It is that of Luo et al. 2023, section 4.3, with k = num_train_timesteps / K, and of diffusers' LCM training script.
    """
    return torch.arange(1, num_ddim_timesteps + 1) * (num_train_timesteps // num_ddim_timesteps) - 1
