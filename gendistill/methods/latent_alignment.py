"""Latent-space alignment: a student of few calls paints the latents that its teacher paints of the same noise and prompt.

The teacher's ways from noise to latents are painted once (`data.trajectories`); then the student learns from any point of them
where they end. From the noise alone this is the distillation of Luhman & Luhman 2021; from all points it also learns what a
second step, a third and a fourth start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gendistill.data.batches import Batch
from gendistill.data.generations import ending_with
from gendistill.data.trajectories import TrajectoryData
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.pixel import pseudo_huber
from gendistill.methods.aligned import AlignedMethod
from gendistill.methods.diffusion import first_networks
from gendistill.methods.stage import Stage
from gendistill.run.config import DistillConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Update


class LatentAlignment(AlignedMethod):
    """Alignment alone: a few-step student by regression of the ends of its teacher's ways.

    Args:
        partner: of a second student, for deep mutual learning (Zhang et al. 2018): each learns all terms, and the x_0 of the
            other, which looks at the same ways from points of its own. The first is the one that the run is for.
    """

    name = "latent_alignment"

    def __init__(self, networks: Networks, ema_decay: float, partner: Networks | None = None) -> None:
        self.networks, self.ema_decay, self.partner = networks, ema_decay, partner

    @property
    def students(self) -> dict[str, Networks]:
        return super().students if self.partner is None else {**super().students, "partner": self.partner}

    def updates(self, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        painted = {name: alignment.painted(batch, random) for name, alignment in self.alignments.items()}
        for name, alignment in self.alignments.items():
            ours = painted[name]
            yield from alignment.updates(ours, batch, random)
            loss, terms = alignment.loss(ours, batch, random)
            if weight := weight_at(alignment.config.partner_weight, random.step):
                for other in painted.keys() - {name}:
                    terms["mutual"] = pseudo_huber(ours, painted[other].detach())
                    loss = loss + weight * terms["mutual"]
            prefix = "" if name == "student" else f"{name}_"
            yield Update(loss, name, {f"{prefix}{term}": of.detach() for term, of in {"loss": loss, **terms}.items()})

    def after_step(self, step: int) -> None:
        for networks in self.students.values():
            networks.update_average(min(self.ema_decay, (1 + step) / (10 + step)))


def alignment_stages(
    config: DistillConfig, teacher: Denoiser, unconditional: Conditioning, start: Any = None
) -> Iterator[Stage]:
    """One stage a generation: a student that is validated at every step count.

    Each generation starts as the first did, and learns the teacher's ways with the ends that the student before it
    paints in the main step count (Furlanello et al. 2018).
    """
    settings = config.align

    learned_from: Callable[[TrajectoryData], TrajectoryData] | None = None
    for number in range(1, settings.generations + 1):
        networks = first_networks(config, teacher, start)
        partner = first_networks(config, teacher, start) if settings.partner == "mutual" else None
        method = LatentAlignment(networks, settings.ema_decay, partner)
        folder = f"stages/generation-{number}" if settings.generations > 1 else ""
        student = "student" if number == settings.generations else f"{folder}/student"
        yield Stage(method, config.steps, list(config.solvers), student, config.trainer, folder, data=learned_from)
        learned_from = partial(ending_with, student=networks.average, steps=config.steps[0], cache=config.data.cache)
