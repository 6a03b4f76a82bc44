"""Perceptual distance between latents in the features of the teacher's network."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.diffusion.blocks import first_half, recorded_maps
from gendistill.diffusion.denoiser import Denoiser
from gendistill.losses.pixel import perceptual_distance
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning


class LatentPerception:
    """Perceptual distance between two latents in the features of the teacher's network: LPIPS for latents.

    The features are those of the blocks in the first half of the network (Zhang et al. 2018, eq. 1, with this network instead
    of VGG), at the same low noise level for both latents, and conditioned as the images are.

    Args:
        max_fraction: noise levels are those of timesteps below this fraction of all.
    """

    def __init__(self, teacher: Denoiser, max_fraction: float = 0.3) -> None:
        self.teacher, self.max_fraction = teacher, max_fraction

    def __call__(self, student_x0: Tensor, teacher_x0: Tensor, conditioning: Conditioning, random: PerSampleRandom) -> Tensor:
        """The distance between latents (B, C, h, w) each, a scalar. Gradients flow to `student_x0`."""
        schedule = self.teacher.schedule
        t = to_device((random.uniform() * self.max_fraction * schedule.num_train_timesteps).long(), student_x0.device)
        noise = to_device(random.normal(student_x0.shape[1:]), student_x0.device)
        conditioning = conditioning.with_guidance(None)
        with torch.no_grad():
            target = self._features(schedule.add_noise(teacher_x0, noise, t), t, conditioning)
        return perceptual_distance(self._features(schedule.add_noise(student_x0, noise, t), t, conditioning), target)

    def _features(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> list[Tensor]:
        network = self.teacher.network
        names = first_half(network)
        with recorded_maps(network, names) as maps:
            self.teacher(x_t, t, conditioning)
        return [maps[name] for name in names]
