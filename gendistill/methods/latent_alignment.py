"""Latent-space alignment: a student of few calls generates the latents that its teacher generates of the same noise and prompt.

The teacher's ways from noise to latents are generated once (`data.trajectories`); then the student learns from any point of them
where they end. From the noise alone this is the distillation of Luhman & Luhman 2021; from all points it also learns what a
second step, a third and a fourth start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from gendistill.data.batches import Batch
from gendistill.data.trajectories import TrajectoryData, ending_with
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.pixel import pseudo_huber
from gendistill.methods.alignment import AlignConfig, Alignment, alignment_of
from gendistill.methods.denoiser_method import Critic, DenoiserContext, DenoiserMethod
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Update


class LatentAlignment(DenoiserMethod):
    """Alignment alone: a few-step student by regression of the ends of its teacher's trajectories.

    Args:
        alignments: of each student, by the name of its optimizer. With a second student, `peer`, this is deep mutual
            learning (Zhang et al. 2018): each learns all terms, and the x_0 of the other, which sees the same trajectories
            from points of its own. The first is the student of the run.
    """

    name = "latent_alignment"

    def __init__(self, alignments: dict[str, Alignment], ema_decay: float) -> None:
        self.alignments, self.networks = alignments, alignments["student"].networks
        for alignment in alignments.values():
            alignment.networks.decay = ema_decay

    @property
    def students(self) -> dict[str, Networks]:
        return {name: alignment.networks for name, alignment in self.alignments.items()}

    @property
    def critics(self) -> list[Critic]:
        return [critic for alignment in self.alignments.values() for critic in alignment.critics]

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        generated = {name: alignment.student_x0(batch, step, random) for name, alignment in self.alignments.items()}
        for name, alignment in self.alignments.items():
            ours = generated[name]
            yield from alignment.critic_updates(ours, batch, step, random)
            loss, terms = alignment.loss(ours, batch, step, random)
            if weight := weight_at(alignment.config.peer_weight, step):
                for other in generated.keys() - {name}:
                    terms["mutual"] = pseudo_huber(ours, generated[other].detach())
                    loss = loss + weight * terms["mutual"]
            prefix = "" if name == "student" else f"{name}_"
            yield Update(loss, (name,), {f"{prefix}{term}": value.detach() for term, value in {"loss": loss, **terms}.items()})


class AlignmentRecipe(Recipe):
    """One stage a generation: a student that is validated at every step count.

    Each generation starts as the first did, and learns the teacher's trajectories with the ends that the student before it
    generates in the main step count (Furlanello et al. 2018).
    """

    name = "latent_alignment"
    section = "align"
    Config = AlignConfig
    summary = "learns where the teacher's trajectories end: one student that generates the teacher's own latents"
    supports = Supports(auxiliary_losses=True)

    def data_needs(self, config: RunConfig) -> Literal["trajectories"]:
        return "trajectories"

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, settings = context.config, context.config.align
        learned_from: Callable[[TrajectoryData], TrajectoryData] | None = None
        for outline in self.outline(config):
            names = ("student", "peer") if settings.peer == "mutual" else ("student",)
            networks = {name: context.networks() for name in names}
            alignments = {
                name: alignment_of(context, nets, config.steps, config.trainer, name) for name, nets in networks.items()
            }
            method = LatentAlignment(alignments, settings.ema_decay)
            folder = f"stages/{outline.name}" if outline.name else ""
            yield Stage(
                method,
                config.trainer,
                outline.student,
                folder,
                steps=config.steps,
                solvers=list(config.solvers),
                data=learned_from,
            )
            learned_from = partial(ending_with, student=method.networks.average, steps=config.steps[0], cache=config.data.cache)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        count = config.align.generations
        names = [f"generation-{number}" for number in range(1, count + 1)] if count > 1 else [""]
        students = [f"stages/{name}/student" for name in names[:-1]] + ["student"]
        return [StageOutline(name, config.trainer, student) for name, student in zip(names, students, strict=True)]
