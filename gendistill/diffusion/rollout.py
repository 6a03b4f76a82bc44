"""Where a denoiser comes to by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import trailing


@torch.no_grad()
def come_to(
    denoiser: Denoiser, noise: Tensor, conditioning: Conditioning, steps: int, made: int | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, C, h, w) and its times (B,) after `made` (all where None) of `steps` steps of DDIM on the trailing grid."""
    schedule = denoiser.schedule
    times = torch.cat([trailing(steps, schedule.num_train_timesteps), torch.tensor([int(schedule.clean)])]).to(noise.device)
    x, made = noise, steps if made is None else made
    for number in range(made):
        t, s = (times[at].expand(len(x)) for at in (number, number + 1))
        said = denoiser(x, t, conditioning)
        x = ddim_step(said.x_0, said.eps, s, schedule)
    return x, times[made].expand(len(x))
