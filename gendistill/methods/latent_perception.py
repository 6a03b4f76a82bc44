"""How alike latents look to the teacher's own network."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.diffusion.blocks import blocks_of, reading
from gendistill.diffusion.denoiser import Denoiser
from gendistill.losses.pixel import perceptual_distance
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning


class LatentPerception:
    """How alike latents look to the teacher's own network, with the same little noise on both: a LPIPS of latents.

    Features of its blocks on the way down and of the middle one (Zhang et al. 2018, eq. 1, with this network in the place of
    VGG), under the images' conditions.

    Args:
        most: the noise is that of timesteps below this share of all.
    """

    def __init__(self, teacher: Denoiser, most: float = 0.3) -> None:
        self.teacher, self.most = teacher, most

    def __call__(self, ours: Tensor, theirs: Tensor, conditioning: Conditioning, random: PerSampleRandom) -> Tensor:
        """Latents (B, C, h, w), both; a scalar. Gradients flow to `ours`."""
        schedule = self.teacher.schedule
        t = (random.uniform() * self.most * schedule.num_train_timesteps).long().to(ours.device)
        noise = random.normal(ours.shape[1:]).to(ours.device)
        conditioning = conditioning.with_guidance(None)
        with torch.no_grad():
            target = self._features(schedule.add_noise(theirs, noise, t), t, conditioning)
        return perceptual_distance(self._features(schedule.add_noise(ours, noise, t), t, conditioning), target)

    def _features(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> list[Tensor]:
        network = self.teacher.network
        names = [name for name in blocks_of(network) if not name.startswith("up_")]
        with reading(network, names) as found:
            self.teacher(x_t, t, conditioning)
        return [found[name] for name in names]
