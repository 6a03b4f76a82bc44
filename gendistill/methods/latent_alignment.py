"""Latent-space alignment: a few-step student generates the latents of its teacher from the same noise and prompt.

The teacher's trajectories from noise to latents are generated once (`data.trajectories`). The student is trained to predict the
end of a trajectory from any of its points. From the noise alone this is the distillation of Luhman & Luhman 2021; the other
points train the second, third and fourth step of a few-step sampler.
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
    """Alignment as the method: a few-step student by regression on the ends of its teacher's trajectories.

    Args:
        alignments: the alignment of each student by optimizer name; `student` is the result of the run. A second student,
            `peer`, makes this deep mutual learning (Zhang et al. 2018): each student is trained on all terms, and on the x_0
            of the other, which is predicted from other points of the same trajectories.
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
        x0 = {name: alignment.student_x0(batch, step, random) for name, alignment in self.alignments.items()}
        for name, alignment in self.alignments.items():
            yield from alignment.critic_updates(x0[name], batch, step, random)
            loss, terms = alignment.loss(x0[name], batch, step, random)
            if weight := weight_at(alignment.config.peer_weight, step):
                for peer in x0.keys() - {name}:
                    terms["mutual"] = pseudo_huber(x0[name], x0[peer].detach())
                    loss = loss + weight * terms["mutual"]
            prefix = "" if name == "student" else f"{name}_"
            yield Update(loss, (name,), {f"{prefix}{term}": value.detach() for term, value in {"loss": loss, **terms}.items()})


class AlignmentRecipe(Recipe):
    """One stage for each generation (born-again networks, Furlanello et al. 2018), validated at every step count.

    Each generation is initialised as the first one, and is trained on the teacher's trajectories, with the ends replaced by the
    latents that the student of the generation before samples at the main step count.
    """

    name = "latent_alignment"
    section = "align"
    Config = AlignConfig
    summary = "Regression of the ends of the teacher's trajectories: one student that generates the teacher's own latents"
    supports = Supports(auxiliary_losses=True)

    def data_needs(self, config: RunConfig) -> Literal["trajectories"]:
        return "trajectories"

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, settings = context.config, context.config.align
        data: Callable[[TrajectoryData], TrajectoryData] | None = None
        for outline in self.outline(config):
            names = ("student", "peer") if settings.peer == "mutual" else ("student",)
            networks = [context.networks() for _ in names]  # before the discriminators, whose weights are random too
            alignments = {
                name: alignment_of(context, student, config.steps, name) for name, student in zip(names, networks, strict=True)
            }
            method = LatentAlignment(alignments, settings.ema_decay)
            folder = f"stages/{outline.name}" if outline.name else ""
            yield Stage(
                method,
                config.trainer,
                outline.student,
                folder,
                steps=config.steps,
                solvers=context.solvers,
                data=data,
            )
            data = partial(ending_with, student=method.networks.average, steps=config.steps[0], cache=config.data.cache)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        count = config.align.generations
        names = [f"generation-{number}" for number in range(1, count + 1)] if count > 1 else [""]
        students = [f"stages/{name}/student" for name in names[:-1]] + ["student"]
        return [StageOutline(name, config.trainer, student) for name, student in zip(names, students, strict=True)]
