"""Adversarial training of a student with a discriminator of latents; the teacher's latents are the real ones.

The discriminator gets latents with noise of a sampled level, as in Wang et al. 2023 (Diffusion-GAN) and latent adversarial
diffusion distillation (Sauer et al. 2024): the teacher's trajectories are few, and a discriminator of clean latents would
memorise them. The R1 penalty (Mescheder et al. 2018) regularises it. It is a small separate network, not heads on the teacher's
features as in Sauer et al.: that saves a call of the teacher, and works for teachers of any architecture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendistill.diffusion.latent_discriminator import LatentDiscriminator, condition_of
from gendistill.losses.adversarial import discriminator_accuracy, discriminator_loss, generator_loss, r1_penalty
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule
from gendistill.training.method import OptimizerSettings, Update

R1, PENALTY_EVERY = 0.1, 4  # weight of the penalty; steps between penalties


class LatentAdversary:
    """The discriminator between the latents of one student and those of its teacher.

    Args:
        network: the discriminator network.
        schedule: noise schedule.
        student: name of the student's optimizer; the discriminator's optimizer is `discriminator`, or `STUDENT_discriminator`
            for a student of another name.
        max_fraction: noise levels are those of timesteps below this fraction of all.

    Attributes:
        network: wrapped for distributed training; its parameters are trained through it.
        module: not wrapped; gradients flow through it to the student.
    """

    settings = OptimizerSettings(betas=(0.0, 0.99))

    def __init__(
        self, network: LatentDiscriminator, schedule: NoiseSchedule, student: str = "student", max_fraction: float = 0.3
    ) -> None:
        self.module, self.schedule, self.student, self.max_fraction = network, schedule, student, max_fraction
        self.name = "discriminator" if student == "student" else f"{student}_discriminator"
        self.network: nn.Module = network
        self.parameters = dict(network.named_parameters())

    def update(
        self, student_x0: Tensor, teacher_x0: Tensor, conditioning: Conditioning, step: int, random: PerSampleRandom
    ) -> Update:
        """The discriminator's loss (hinge) on latents (B, C, h, w) of teacher (real) and student (fake)."""
        student_x0 = student_x0.detach()
        noise, t = self._noise(student_x0, random)
        x_t = torch.cat([self.schedule.add_noise(x_0, noise, t) for x_0 in (teacher_x0, student_x0)])
        condition = condition_of(conditioning)
        both_conditions = None if condition is None else torch.cat([condition, condition])
        log_snr = self.schedule.log_snr(t)
        real, fake = self.network(x_t, log_snr.repeat(2), both_conditions).float().chunk(2)
        loss = discriminator_loss(real, fake)
        logs = {f"{self.name}_loss": loss.detach(), f"{self.name}_accuracy": discriminator_accuracy(real, fake).detach()}
        if step % PENALTY_EVERY == 0:
            penalty = r1_penalty(lambda x: self.module(x, log_snr, condition), x_t[: len(student_x0)])
            loss = loss + PENALTY_EVERY * R1 * penalty
        return Update(loss, (self.name,), logs, watch={self.student: student_x0.mean()})

    def generator_loss(self, student_x0: Tensor, conditioning: Conditioning, random: PerSampleRandom) -> Tensor:
        """The student's adversarial loss, a scalar; it gives the discriminator no gradient."""
        noise, t = self._noise(student_x0, random)
        x_t = self.schedule.add_noise(student_x0, noise, t)
        self.module.requires_grad_(False)
        logits = self.module(x_t, self.schedule.log_snr(t), condition_of(conditioning))
        self.module.requires_grad_(True)
        return generator_loss(logits)

    def _noise(self, latents: Tensor, random: PerSampleRandom) -> tuple[Tensor, Tensor]:
        """Unit noise of the latents' shape (B, ...), and a timestep (B,)."""
        t = (random.uniform() * self.max_fraction * self.schedule.num_train_timesteps).long()
        return to_device(random.normal(tuple(latents.shape[1:])), latents.device), to_device(t, latents.device)
