"""Latent-space alignment: a student of few calls paints the latents that its teacher paints of the same noise and prompt.

The teacher's ways from noise to latents are painted once (`data.trajectories`); then the student learns from any point of them
where they end. From the noise alone this is the distillation of Luhman & Luhman 2021; from all points it also learns what a
second step, a third and a fourth start from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from gendistill.config import DistillConfig
from gendistill.data.batches import Batch
from gendistill.data.order import PerSampleRandom
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.networks import Networks
from gendistill.methods.alignment import Alignment
from gendistill.methods.diffusion import DiffusionMethod, first_networks
from gendistill.methods.stage import Stage
from gendistill.weights import in_steps


class LatentAlignment(DiffusionMethod):
    """Alignment alone: a few-step student by regression of the ends of its teacher's ways."""

    name = "latent_alignment"

    def __init__(self, networks: Networks, alignment: Alignment) -> None:
        self.networks, self.whole = networks, alignment

    def loss_of(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        return self.whole.loss(batch, random)

    def after_step(self, step: int) -> None:
        self.networks.update_average(min(self.whole.config.ema_decay, (1 + step) / (10 + step)))


def alignment_stages(
    config: DistillConfig, teacher: Denoiser, unconditional: Conditioning, start: Any = None
) -> Iterator[Stage]:
    """One stage: a student that is validated at every step count."""
    networks = first_networks(config, teacher, start)
    alignment = Alignment(networks, in_steps(config.align, config.trainer.max_steps), config.steps)
    yield Stage(LatentAlignment(networks, alignment), config.steps, list(config.solvers), "student", config.trainer)
