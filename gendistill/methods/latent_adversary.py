"""The game between a student and a discriminator of latents, which are real where the teacher generated them.

Both see latents with a noise of a sampled level, as in Wang et al. 2023 (Diffusion-GAN) and latent adversarial diffusion
distillation (Sauer et al. 2024): the teacher's ways are few, and a discriminator of clean latents soon knows them by heart. R1
(Mescheder et al. 2018) keeps it smooth. It is a small network of its own, not heads on the teacher's features as in the latter:
that costs no call of the teacher, and works for teachers of any kind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendistill.diffusion.latent_discriminator import LatentDiscriminator, condition_of
from gendistill.losses.adversarial import discriminator_accuracy, discriminator_loss, generator_loss, r1_penalty
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule
from gendistill.training.method import OptimizerSettings, Update

R1, PENALTY_EVERY = 0.1, 4  # weight; steps


class LatentAdversary:
    """Who tells the latents of one student from its teacher's.

    Args:
        network: that learns it.
        schedule: of the noise.
        student: the name of that student's optimizer; its own is `discriminator`, or `STUDENT_discriminator` of another one.
        most: the noise is that of timesteps below this share of all.

    Attributes:
        network: wrapped by whatever the processes need.
        module: the same, not wrapped: what gradients pass through on their way to the student.
    """

    settings = OptimizerSettings(betas=(0.0, 0.99))

    def __init__(
        self, network: LatentDiscriminator, schedule: NoiseSchedule, student: str = "student", most: float = 0.3
    ) -> None:
        self.module, self.schedule, self.student, self.most = network, schedule, student, most
        self.name = "discriminator" if student == "student" else f"{student}_discriminator"
        self.network: nn.Module = network
        self.parameters = dict(network.named_parameters())

    def update(self, ours: Tensor, theirs: Tensor, conditioning: Conditioning, step: int, random: PerSampleRandom) -> Update:
        """Its own loss (hinge), of latents (B, C, h, w) of both."""
        ours = ours.detach()
        noise, t = self._noise(ours, random)
        seen = torch.cat([self.schedule.add_noise(x, noise, t) for x in (theirs, ours)])
        condition = condition_of(conditioning)
        twice = None if condition is None else torch.cat([condition, condition])
        log_snr = self.schedule.log_snr(t)
        real, fake = self.network(seen, log_snr.repeat(2), twice).float().chunk(2)
        loss = discriminator_loss(real, fake)
        logs = {f"{self.name}_loss": loss.detach(), f"{self.name}_told_apart": discriminator_accuracy(real, fake).detach()}
        if step % PENALTY_EVERY == 0:
            penalty = r1_penalty(lambda x: self.module(x, log_snr, condition), seen[: len(ours)])
            loss = loss + PENALTY_EVERY * R1 * penalty
        return Update(loss, (self.name,), logs, watch={self.student: ours.mean()})

    def generator_loss(self, ours: Tensor, conditioning: Conditioning, random: PerSampleRandom) -> Tensor:
        """The student's adversarial loss, a scalar; the discriminator takes no gradient from it."""
        noise, t = self._noise(ours, random)
        self.module.requires_grad_(False)
        logits = self.module(self.schedule.add_noise(ours, noise, t), self.schedule.log_snr(t), condition_of(conditioning))
        self.module.requires_grad_(True)
        return generator_loss(logits)

    def _noise(self, latents: Tensor, random: PerSampleRandom) -> tuple[Tensor, Tensor]:
        """Unit noise of the latents' shape (B, ...), and its timestep (B,)."""
        t = (random.uniform() * self.most * self.schedule.num_train_timesteps).long()
        return random.normal(tuple(latents.shape[1:])).to(latents.device), t.to(latents.device)
