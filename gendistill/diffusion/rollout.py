"""Few-step rollouts: the latents that a denoiser reaches from noise in a few DDIM steps."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.runtime.device import to_device
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import trailing


@torch.no_grad()
def few_step_rollout(
    denoiser: Denoiser, noise: Tensor, conditioning: Conditioning, steps: int, stop_after: int | None = None
) -> tuple[Tensor, Tensor]:
    """x_t (B, C, h, w) and t (B,) after the first `stop_after` (None: all) of `steps` DDIM steps on the trailing grid."""
    schedule = denoiser.schedule
    times = to_device(torch.cat([trailing(steps, schedule.num_train_timesteps), torch.tensor([schedule.clean])]), noise.device)
    x_t, stop_after = noise, steps if stop_after is None else stop_after
    for i in range(stop_after):
        t, s = times[i].expand(len(x_t)), times[i + 1].expand(len(x_t))
        prediction = denoiser(x_t, t, conditioning)
        x_t = ddim_step(prediction.x_0, prediction.eps, s, schedule)
    return x_t, times[stop_after].expand(len(x_t))
