"""Few-step rollouts: the latents that a denoiser reaches from noise in a few steps of a sampler, DDIM by default."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, trailing

SamplerStep = Callable[[Prediction, Tensor], Tensor]  # a prediction at t and the next time s (B,) -> x_s


def rollout_times(steps: int, schedule: NoiseSchedule) -> list[int]:
    """The N + 1 times of a rollout of N steps: the trailing grid, and `clean`."""
    return [*trailing(steps, schedule.num_train_timesteps).tolist(), schedule.clean]


@torch.no_grad()
def few_step_rollout(
    denoiser: Denoiser,
    noise: Tensor,
    conditioning: Conditioning,
    steps: int,
    stop_after: int | None = None,
    step: SamplerStep | None = None,
) -> tuple[Tensor, Tensor]:
    """x_t (B, C, h, w) and t (B,) after the first `stop_after` (None: all) of `steps` steps on the trailing grid.

    Args:
        step: the step of the sampler; None is DDIM.
    """
    times = [torch.full((len(noise),), time, device=noise.device) for time in rollout_times(steps, denoiser.schedule)]
    times, x_t = times[: None if stop_after is None else stop_after + 1], noise
    for t, s in pairwise(times):
        prediction = denoiser(x_t, t, conditioning)
        x_t = ddim_step(prediction.x_0, prediction.eps, s, denoiser.schedule) if step is None else step(prediction, s)
    return x_t, times[-1]
