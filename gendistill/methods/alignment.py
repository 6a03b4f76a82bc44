"""What a student is told of its teacher's ways from noise to latents.

From any point of such a way the student's x_0 is held against the way's end: one by one (matching), all together
(distribution), and in how near they are to each other (semantic). The terms are a method's whole loss
(`methods.latent_alignment`), or stand beside its own with `align.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.latent_discriminator import LatentDiscriminator
from gendistill.diffusion.rollout import come_to
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses import distributions
from gendistill.losses.distributions import patch_sliced_wasserstein as patches
from gendistill.losses.pixel import l2, pseudo_huber
from gendistill.losses.terms import RELATION_LOSSES, Loss, Term, weighted
from gendistill.methods.clip_distance import ClipDistance
from gendistill.methods.denoiser_method import DenoiserContext, LossAndLogs
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.methods.latent_perception import LatentPerception
from gendistill.methods.recipe import Recipe, RunConfig
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Weight, in_steps, weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Update
from gendistill.training.trainer_config import TrainerConfig


class MatchConfig(Section):
    """How far the student's latents are from the teacher's of the same noise and prompt: weights, 0 is off."""

    pseudo_huber: Weight = 1.0
    l2: Weight = 0.0
    perceptual: Weight = Field(0.0, description="distance of the features of the teacher's own network, a little noise added")


class LatentDistributionConfig(Section):
    """How far they are as sets: weights, 0 is off."""

    patches: Weight = Field(0.0, description="sliced Wasserstein distance of the patches of each latents and its teacher's")
    real_patches: Weight = Field(
        0.0, description="of the patches of all latents and of as many of the data's, without their means"
    )
    sliced_wasserstein: Weight = Field(0.0, description="of whole latents")
    mmd: Weight = Field(0.0, description="of whole latents, with Gaussian kernels about the median distance")
    adversarial: Weight = Field(
        0.0, description="of a discriminator of latents, given the prompt or class, that learns beside the student (hinge)"
    )


class SemanticConfig(Section):
    """How near they are to each other, where prompts are: weights, 0 is off."""

    distance: Weight = Field(0.0, description="RKD, of pairs")
    angle: Weight = Field(0.0, description="RKD, of triplets")
    contrastive: Weight = Field(0.0, description="InfoNCE between the student's and the teacher's")
    clip: Weight = Field(0.0, description="1 - cosine of the CLIP embeddings of the decoded images of the two")


class AlignConfig(Section):
    """Latent-space alignment (`--method latent_alignment`), and the same beside another method's loss."""

    formerly: ClassVar[dict[str, str]] = {
        "start_share": "start_fraction",
        "own_share": "on_policy_fraction",
        "partner": "peer",
        "partner_weight": "peer_weight",
    }
    weight: Weight = Field(0.0, description="beside the loss of another method; 0 is off")
    trajectories: int = Field(1024, ge=1, description="that the teacher generates once, from noise to latents")
    trajectory_steps: int = Field(16, ge=1, description="of the teacher for each of them (DPM-Solver++)")
    teachers: dict[str, float | str] = Field(
        {},
        description="who generates them too: folders, each with its weight in an average (the teacher's own is 1), or with a "
        "pattern (regular expression) of the prompts that it generates by itself",
        examples=["weights or patterns of prompts by folder such as {teacher-b: 0.5, teacher-c: animals}"],
    )
    start_fraction: float = Field(
        0.25, ge=0, le=1, description="of samples that begin at the noise; others anywhere on the way"
    )
    on_policy_fraction: float = Field(
        0.0, ge=0, le=1, description="of steps that begin where the student itself comes to in few steps"
    )
    match: MatchConfig = MatchConfig()
    distribution: LatentDistributionConfig = LatentDistributionConfig()
    semantic: SemanticConfig = SemanticConfig()
    clip: str = Field("assets/tiny-clip", description="of semantic.clip: a folder or MODEL/TAG of open_clip")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the average, which is the student")
    generations: int = Field(
        1, ge=1, description="students one after another, each anew from the teacher; the ends of its ways are its parent's"
    )
    peer: Literal["none", "mutual"] = Field(
        "none", description="who else learns: a second student, from which the first learns too, and it from that"
    )
    peer_weight: Weight = Field(1.0, description="of the distance to what the peer generates (pseudo-Huber)")

    @field_validator("teachers")
    @classmethod
    def _weighs_or_matches(cls, teachers: dict[str, float | str]) -> dict[str, float | str]:
        for folder, of in teachers.items():
            if isinstance(of, str):
                try:
                    re.compile(of)
                except re.error as error:
                    raise ValueError(f"a regular expression for {folder}, and {of!r} is none ({error})") from error
            elif of <= 0:
                raise ValueError(f"a weight above 0 for {folder}, or a pattern of prompts as a text")
        return teachers


MATCHING: dict[str, Loss] = {"pseudo_huber": pseudo_huber, "l2": l2}
SEMANTIC = {name: RELATION_LOSSES[name] for name in ("distance", "angle", "contrastive")}
PATCH, LINES = 3, 16  # latents along an edge; directions


class Alignment:
    """All terms between a student and the ways of its teacher.

    Args:
        steps: step counts that the student is to be sampled at, whose own ways it also learns from.
        adversary: who tells its latents from the teacher's; None where nothing adversarial is asked for.
        clip: what images of the latents mean; None where nothing is asked of that.
    """

    name = "align"

    def __init__(
        self,
        networks: Networks,
        config: AlignConfig,
        steps: Sequence[int],
        *,
        adversary: LatentAdversary | None = None,
        clip: ClipDistance | None = None,
    ) -> None:
        self.networks, self.config, self.steps = networks, config, list(steps)
        self.perception = LatentPerception(networks.teacher) if config.match.perceptual != 0 else None
        self.adversary, self.clip = adversary, clip

    def student_x0(self, batch: Batch, step: int, random: PerSampleRandom) -> Tensor:
        """The student's x_0 (B, C, h, w), seen from one point of each of `batch.ways`."""
        trajectories = _trajectories(batch)
        x_t, t = self._begin(trajectories, step, random)
        return self.networks.student(x_t, t, trajectories.conditioning).x_0

    @property
    def weight(self) -> float | dict[float, float]:
        return self.config.weight

    @property
    def critics(self) -> list[LatentAdversary]:
        return [] if self.adversary is None else [self.adversary]

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Generator[Update, None, LossAndLogs]:
        ours = self.student_x0(batch, step, random)
        yield from self.critic_updates(ours, batch, step, random)
        return self.loss(ours, batch, step, random)

    def critic_updates(self, ours: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        """Of the critics, which learn from the student's x_0 before the student does."""
        trajectories = _trajectories(batch)
        if self.adversary is not None and weight_at(self.config.distribution.adversarial, step):
            yield self.adversary.update(ours, trajectories.latents, trajectories.conditioning, step, random)

    def terms(self, ours: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and loss (0-d) of each that counts in this step, of what a student has `generated` of `batch.ways`; the
        latents of the data are those of other images."""
        trajectories = _trajectories(batch)
        theirs, conditioning = trajectories.latents, trajectories.conditioning
        for name, weight, loss in weighted(MATCHING, self.config.match, step):
            yield name, weight, loss(ours, theirs)
        if self.perception is not None and (weight := weight_at(self.config.match.perceptual, step)):
            yield "perceptual", weight, self.perception(ours, theirs, conditioning, random)
        yield from self._as_sets(ours, theirs, batch.latents, step)
        if self.adversary is not None and (weight := weight_at(self.config.distribution.adversarial, step)):
            yield "adversarial", weight, self.adversary.generator_loss(ours, conditioning, random)
        for name, weight, relation in weighted(SEMANTIC, self.config.semantic, step):
            yield name, weight, relation(ours, theirs)
        if self.clip is not None and (weight := weight_at(self.config.semantic.clip, step)):
            yield "clip", weight, self.clip(ours, theirs)

    def loss(self, ours: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        """All terms by their weights in one scalar, and each for the log."""
        terms = list(self.terms(ours, batch, step, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

    def _as_sets(self, ours: Tensor, theirs: Tensor, of_data: Tensor, step: int) -> Iterator[Term]:
        """The student's latents beside the teacher's, and beside those of the data, whichever belongs to which."""
        config, generator = self.config.distribution, torch.Generator().manual_seed(step)

        def lines(*, centred: bool) -> Tensor:
            size = min(PATCH, *theirs.shape[2:])
            return distributions.patch_projections(LINES, theirs.shape[1], size, generator, centred=centred).to(theirs.device)

        if weight := weight_at(config.patches, step):
            yield "patches", weight, patches(ours, theirs, lines(centred=False), levels=1)
        if weight := weight_at(config.real_patches, step):
            yield "real_patches", weight, patches(ours, of_data, lines(centred=True), levels=1, paired=False)
        if weight := weight_at(config.sliced_wasserstein, step):
            along = distributions.random_projections(128, theirs[0].numel(), generator).to(theirs.device)
            yield "sliced_wasserstein", weight, distributions.sliced_wasserstein(ours, theirs, along)
        if weight := weight_at(config.mmd, step):
            yield "mmd", weight, distributions.mmd(ours, theirs)

    def _begin(self, trajectories: Trajectories, step: int, random: PerSampleRandom) -> tuple[Tensor, Tensor]:
        """Where the student begins: x_t (B, C, h, w) and t (B,), on the teacher's way, or where it comes to by itself."""
        config, device, last = self.config, trajectories.points.device, len(trajectories.times) - 1
        chance, place = random.uniform((2,)).unbind(1)
        draws = torch.Generator().manual_seed(step)  # of the whole step, the same for every process
        if float(torch.rand((), generator=draws)) < config.on_policy_fraction:
            steps = self.steps[int(torch.randint(len(self.steps), (), generator=draws))]
            made = int(torch.randint(steps, (), generator=draws))
            return come_to(self.networks.average, trajectories.noise, trajectories.conditioning, steps, made)
        index = torch.where(chance < config.start_fraction, 0, (place * last).long()).to(device)
        return trajectories.points[torch.arange(len(trajectories), device=device), index], trajectories.times[index]


def _trajectories(batch: Batch) -> Trajectories:
    assert batch.trajectories is not None  # what alignment learns from
    return batch.trajectories


def alignment_of(
    context: DenoiserContext, networks: Networks, steps: Sequence[int], trainer: TrainerConfig, student: str = "student"
) -> Alignment:
    """The alignment of one student, its weights by the step of a stage; with a critic or CLIP where the settings ask for them.

    Args:
        student: the name of its optimizer.
    """
    config: AlignConfig = context.config.align
    settings, teacher = in_steps(config, trainer.max_steps), context.opened
    adversary = clip = None
    if settings.distribution.adversarial != 0 and teacher is not None:
        adversary = _adversary(teacher, student)
    if settings.semantic.clip != 0 and teacher is not None:
        clip = ClipDistance(teacher.codec, load_scorer(config.clip, teacher.pipeline.device))
    return Alignment(networks, settings, steps, adversary=adversary, clip=clip)


def auxiliary_alignment(
    context: DenoiserContext, networks: Networks, steps: Sequence[int], trainer: TrainerConfig
) -> list[Alignment]:
    """The same beside another method's loss; none where `align.weight` is 0."""
    return [alignment_of(context, networks, steps, trainer)] if context.config.align.weight != 0 else []


def _adversary(teacher: Teacher, student: str) -> LatentAdversary:
    """A discriminator for the teacher's latents and conditions, of random weights."""
    example = teacher.encode_prompts((teacher.own_prompts or [""])[:1])
    classes = teacher.network.config.get("num_class_embeds") or 0
    network = LatentDiscriminator(teacher.codec.latent_shape(teacher.resolution), example, classes)
    return LatentAdversary(network.to(teacher.pipeline.device), teacher.denoiser.schedule, student)


def needs_trajectories(config: RunConfig) -> Literal["latents", "trajectories"]:
    """What a method learns on beside whose loss alignment may stand."""
    return "trajectories" if config.align.weight != 0 else "latents"


def check_alignment(config: RunConfig, recipe: Recipe) -> None:
    """Raise ValueError where the settings of `align` do not go with the method or the other settings."""
    align: AlignConfig = config.align
    aligns = recipe.data_needs(config) == "trajectories"
    if align.weight != 0 and not recipe.supports.auxiliary_losses:
        raise ValueError(f"align.weight {align.weight}: --method {config.method} learns from no trajectories; expects 0")
    if aligns and config.guidance.mode == "cfg":
        raise ValueError(
            "guidance.mode 'cfg': alignment learns from guided latents, which are to be guided once more; expects 'baked' or "
            "'embedded'"
        )
    # further students are students of alignment alone, all of whose weights are trained
    requested = {"generations": align.generations > 1, "peer": align.peer != "none"}
    for name in (name for name, is_requested in requested.items() if is_requested):
        value = getattr(align, name)
        if recipe.Config is not AlignConfig:
            raise ValueError(f"align.{name} {value}: expects --method latent_alignment, not {config.method}")
        if config.lora.enabled:
            raise ValueError(f"align.{name} {value}: trains all weights; expects lora.enabled=false")
    if align.teachers and not aligns:
        raise ValueError(
            "align.teachers: generate the trajectories of alignment; expects --method latent_alignment, or align.weight above 0 "
            "beside consistency or progressive"
        )
    if aligns and align.semantic.clip != 0 and config.dtype == "float16":
        raise ValueError(
            "align.semantic.clip: its gradients pass the teacher's decoder, which overflows in dtype 'float16'; expects "
            "'float32' or 'bfloat16'"
        )
