"""Grids of timesteps: which t a sampler of N steps visits, and on which consistency distillation trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def trailing(num_inference_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """(N,) int64, falling, from the last trained timestep on: 4 of 1000 -> 999, 749, 499, 249.

    The grid of few-step students: it starts at the noise that the sampler samples (Lin et al. 2024, table 2).
    """
    ratio = num_train_timesteps / num_inference_steps
    grid = np.round(np.arange(num_train_timesteps, 0, -ratio)).astype(np.int64) - 1
    return torch.from_numpy(grid[:num_inference_steps])


def skipping(num_ddim_timesteps: int, num_train_timesteps: int = 1000) -> Tensor:
    """(K,) int64, rising: the solver grid of consistency distillation, 50 of 1000 -> 19, 39, ..., 999.

    Luo et al. 2023, section 4.3, with k = num_train_timesteps / K; the grid of diffusers' LCM training script.
    """
    return torch.arange(1, num_ddim_timesteps + 1) * (num_train_timesteps // num_ddim_timesteps) - 1
