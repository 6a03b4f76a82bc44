"""The loss terms of alignment, between a student and the trajectories of its teacher from noise to latents.

The student predicts x_0 at any point of a trajectory, and its x_0 is compared with the end of the trajectory: sample by sample
(matching), as distributions (distribution), and by the relations between samples (semantic). The terms are the full loss of a
method (`methods.latent_alignment`), or an auxiliary loss of another method with the weight `align.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.latent_discriminator import LatentDiscriminator, number_of_classes
from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses import distributions
from gendistill.losses.distributions import patch_sliced_wasserstein
from gendistill.losses.pixel import l2, pseudo_huber
from gendistill.losses.terms import RELATION_LOSSES, Loss, PairRelationConfig, Term, weighted
from gendistill.methods.clip_distance import ClipDistance
from gendistill.methods.denoiser_method import DenoiserContext, LossAndLogs
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.methods.latent_perception import LatentPerception
from gendistill.methods.recipe import Recipe, RunConfig
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Update


class MatchConfig(Section):
    """Weights of the distances between latents of student and teacher of the same noise and prompt; 0 is off."""

    pseudo_huber: Weight = Field(
        1.0,
        description="Weight of the pseudo-Huber distance of the latents",
        json_schema_extra=about(paper=papers.IMPROVED_CONSISTENCY, at="section 3.3"),
    )
    l2: Weight = Field(
        0.0,
        description="Weight of the squared error of the latents",
        json_schema_extra=about(paper=papers.DENOISING_STUDENT),
    )
    perceptual: Weight = Field(
        0.0,
        description="Weight of the distance of the teacher network's features of the latents, with a little noise added",
        json_schema_extra=about(paper=papers.LPIPS, at="equation 1"),
    )


class LatentDistributionConfig(Section):
    """Weights of the distances between the distributions of these latents; 0 is off.

    A micro-batch has the samples of one process, or of one of its parts with `trainer.gradient_accumulation_steps`.
    """

    patches: Weight = Field(
        0.0,
        description="Weight of the sliced Wasserstein distance between the patches of each latent and of its teacher's",
        json_schema_extra=about(paper=papers.PATCHES, at="section 3.2"),
    )
    real_patches: Weight = Field(
        0.0,
        description="Weight of the same distance between the patches of all latents of a micro-batch and of real data, without "
        "their means",
        json_schema_extra=about(paper=papers.PATCHES, at="section 3.2"),
    )
    sliced_wasserstein: Weight = Field(
        0.0,
        description="Weight of the sliced Wasserstein distance between micro-batches of latents",
        json_schema_extra=about(paper=papers.SLICED),
    )
    mmd: Weight = Field(
        0.0,
        description="Weight of the maximum mean discrepancy of micro-batches of latents, with Gaussian kernels about the "
        "median distance",
        json_schema_extra=about(paper=papers.MMD, at="equation 3"),
    )
    adversarial: Weight = Field(
        0.0,
        description="Weight of the hinge loss of a conditional discriminator of latents, which is trained with the student",
        json_schema_extra=about(paper=papers.PROJECTION, at="equation 4"),
    )


class SemanticConfig(PairRelationConfig):
    """Weights of the distances between the relations of a micro-batch's latents, and between CLIP embeddings; 0 is off."""

    contrastive: Weight = Field(
        0.0,
        description="Weight of InfoNCE between the student's and the teacher's latents of a sample, against the others of "
        "a micro-batch",
        json_schema_extra=about(paper=papers.CRD),
    )
    clip: Weight = Field(
        0.0,
        description="Weight of 1 - cosine of the CLIP embeddings of the student's and the teacher's decoded images",
        json_schema_extra=about(paper=papers.CLIP),
    )


class AlignConfig(Section):
    """Latent-space alignment (`--method latent_alignment`), or alignment as an auxiliary loss of another method."""

    formerly: ClassVar[dict[str, str]] = {
        "start_share": "start_fraction",
        "own_share": "on_policy_fraction",
        "partner": "peer",
        "partner_weight": "peer_weight",
    }
    weight: Weight = Field(0.0, description="Weight of the alignment losses in addition to another method's loss; 0 is off")
    trajectories: int = Field(
        1024,
        ge=1,
        description="Number of teacher trajectories from noise to latents, generated once and cached",
        json_schema_extra=about("trajectories", papers.DENOISING_STUDENT),
    )
    trajectory_steps: int = Field(
        16,
        ge=1,
        description="Sampling steps of the teacher for each trajectory, by DPM-Solver++",
        json_schema_extra=about("steps", papers.DPM_SOLVER),
    )
    teachers: dict[str, float | str] = Field(
        {},
        description="Further teachers by folder, each with its weight in the average prediction (the teacher's own is 1) or "
        "with a regular expression of the prompts that it generates alone",
        examples=[{"teacher-b": 0.5, "teacher-c": "animals"}],
    )
    start_fraction: float = Field(
        0.25, ge=0, le=1, description="Fraction of the samples that start at the noise; the others start along a trajectory"
    )
    on_policy_fraction: float = Field(
        0.0, ge=0, le=1, description="Probability that a step starts from points of the student's own few-step rollout"
    )
    match: MatchConfig = MatchConfig()
    distribution: LatentDistributionConfig = LatentDistributionConfig()
    semantic: SemanticConfig = SemanticConfig()
    clip: str = Field(
        "assets/tiny-clip",
        description="CLIP model of align.semantic.clip: a folder or MODEL/TAG of open_clip",
        json_schema_extra=about(paper=papers.CLIP, path=True),
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay per step of the moving average, which is exported as the student"
    )
    generations: int = Field(
        1,
        ge=1,
        description="Number of students in sequence; each starts from the teacher and learns the endpoints of the one before",
        json_schema_extra=about("students", papers.BORN_AGAIN),
    )
    peer: Literal["none", "mutual"] = Field(
        "none",
        description="Peer of the student: none, or mutual learning with a second student",
        json_schema_extra=about(paper=papers.MUTUAL),
    )
    peer_weight: Weight = Field(
        1.0,
        description="Weight of the pseudo-Huber distance to the peer's prediction",
        json_schema_extra=about(paper=papers.MUTUAL),
    )

    @field_validator("teachers")
    @classmethod
    def _weights_or_patterns(cls, teachers: dict[str, float | str]) -> dict[str, float | str]:
        for folder, weight_or_pattern in teachers.items():
            if isinstance(weight_or_pattern, str):
                try:
                    re.compile(weight_or_pattern)
                except re.error as error:
                    raise ValueError(
                        f"a regular expression for {folder}, which {weight_or_pattern!r} is not ({error})"
                    ) from error
            elif weight_or_pattern <= 0:
                raise ValueError(f"a weight above 0 for {folder}, or a pattern of prompts as a text")
        return teachers


MATCHING: dict[str, Loss] = {"pseudo_huber": pseudo_huber, "l2": l2}
SEMANTIC = {name: RELATION_LOSSES[name] for name in ("distance", "angle", "contrastive")}
PATCH, PROJECTIONS = 3, 16  # edge of a patch in latents; number of random projections


class Alignment:
    """All loss terms between a student and the trajectories of its teacher.

    Args:
        steps: step counts of the student's samplers; on-policy rollouts have one of these step counts.
        adversary: the discriminator of student latents and teacher latents; None without an adversarial term.
        clip: the distance between CLIP embeddings of decoded latents; None without that term.
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
        """The student's x_0 (B, C, h, w), predicted at one point of each of `batch.trajectories`."""
        trajectories = _trajectories(batch)
        x_t, t = self._sample_x_t(trajectories, step, random)
        return self.networks.student(x_t, t, trajectories.conditioning).x_0

    @property
    def weight(self) -> float | dict[float, float]:
        return self.config.weight

    def buffers(self) -> dict[str, Tensor]:
        return {}

    @property
    def critics(self) -> list[LatentAdversary]:
        return [] if self.adversary is None else [self.adversary]

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Generator[Update, None, LossAndLogs]:
        student_x0 = self.student_x0(batch, step, random)
        yield from self.critic_updates(student_x0, batch, step, random)
        return self.loss(student_x0, batch, step, random)

    def critic_updates(self, student_x0: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        """The updates of the critics on the student's x_0, which precede the student's update."""
        trajectories = _trajectories(batch)
        if self.adversary is not None and weight_at(self.config.distribution.adversarial, step):
            yield self.adversary.update(student_x0, trajectories.latents, trajectories.conditioning, step, random)

    def terms(self, student_x0: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and value (0-d) of each loss term of this step, for the student's x_0 of `batch.trajectories`.

        `batch.latents`, those of the training images, are not paired with the trajectories.
        """
        trajectories = _trajectories(batch)
        teacher_x0, conditioning = trajectories.latents, trajectories.conditioning
        for name, weight, loss in weighted(MATCHING, self.config.match, step):
            yield name, weight, loss(student_x0, teacher_x0)
        if self.perception is not None and (weight := weight_at(self.config.match.perceptual, step)):
            yield "perceptual", weight, self.perception(student_x0, teacher_x0, conditioning, random)
        yield from self._distribution_terms(student_x0, teacher_x0, batch.latents, step)
        if self.adversary is not None and (weight := weight_at(self.config.distribution.adversarial, step)):
            yield "adversarial", weight, self.adversary.generator_loss(student_x0, conditioning, random)
        for name, weight, relation in weighted(SEMANTIC, self.config.semantic, step):
            yield name, weight, relation(student_x0, teacher_x0)
        if self.clip is not None and (weight := weight_at(self.config.semantic.clip, step)):
            yield "clip", weight, self.clip(student_x0, teacher_x0)

    def loss(self, student_x0: Tensor, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        """The weighted sum of all terms, a scalar, and the value of each term for the log."""
        terms = list(self.terms(student_x0, batch, step, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

    def _distribution_terms(self, student_x0: Tensor, teacher_x0: Tensor, data_x0: Tensor, step: int) -> Iterator[Term]:
        """Distances of the distribution of the student's latents from those of the teacher's and of the data's."""
        config, generator = self.config.distribution, torch.Generator().manual_seed(step)

        def patch_projections(*, centred: bool) -> Tensor:
            size, channels = min(PATCH, *teacher_x0.shape[2:]), teacher_x0.shape[1]
            projections = distributions.patch_projections(PROJECTIONS, channels, size, generator, centred=centred)
            return to_device(projections, teacher_x0.device)

        if weight := weight_at(config.patches, step):
            projections = patch_projections(centred=False)
            yield "patches", weight, patch_sliced_wasserstein(student_x0, teacher_x0, projections, levels=1)
        if weight := weight_at(config.real_patches, step):
            projections = patch_projections(centred=True)
            distance = patch_sliced_wasserstein(student_x0, data_x0, projections, levels=1, paired=False)
            yield "real_patches", weight, distance
        if weight := weight_at(config.sliced_wasserstein, step):
            projections = to_device(distributions.random_projections(128, teacher_x0[0].numel(), generator), teacher_x0.device)
            yield "sliced_wasserstein", weight, distributions.sliced_wasserstein(student_x0, teacher_x0, projections)
        if weight := weight_at(config.mmd, step):
            yield "mmd", weight, distributions.mmd(student_x0, teacher_x0)

    def _sample_x_t(self, trajectories: Trajectories, step: int, random: PerSampleRandom) -> tuple[Tensor, Tensor]:
        """x_t (B, C, h, w) and t (B,): points of the teacher's trajectories, or of few-step rollouts of the student's EMA."""
        config, device, last = self.config, trajectories.points.device, len(trajectories.times) - 1
        start_uniform, index_uniform = random.uniform((2,)).unbind(1)
        generator = torch.Generator().manual_seed(step)  # the same on every process
        if float(torch.rand((), generator=generator)) < config.on_policy_fraction:
            steps = self.steps[int(torch.randint(len(self.steps), (), generator=generator))]
            stop_after = int(torch.randint(steps, (), generator=generator))
            return few_step_rollout(self.networks.average, trajectories.noise, trajectories.conditioning, steps, stop_after)
        index = to_device(torch.where(start_uniform < config.start_fraction, 0, (index_uniform * last).long()), device)
        return trajectories.points[torch.arange(len(trajectories), device=device), index], trajectories.times[index]


def _trajectories(batch: Batch) -> Trajectories:
    assert batch.trajectories is not None  # `data_needs` of the method is "trajectories"
    return batch.trajectories


def alignment_of(context: DenoiserContext, networks: Networks, steps: Sequence[int], student: str = "student") -> Alignment:
    """The alignment of one student, with a critic or CLIP where the settings need them.

    Args:
        student: name of the student's optimizer.
    """
    settings, teacher = context.config.align, context.opened
    adversary = clip = None
    if settings.distribution.adversarial != 0 and teacher is not None:
        example = context.unconditional if context.examples is None else context.examples.conditioning[:1]
        adversary = _adversary(teacher, example, student)
    if settings.semantic.clip != 0 and teacher is not None:
        clip = ClipDistance(teacher.codec, load_scorer(settings.clip, teacher.pipeline.device))
    return Alignment(networks, settings, steps, adversary=adversary, clip=clip)


def _adversary(teacher: Teacher, example: Conditioning, student: str) -> LatentAdversary:
    """A discriminator for the teacher's latents and for conditions such as `example`, with random weights."""
    classes = number_of_classes(teacher.network.config)
    network = LatentDiscriminator(teacher.codec.latent_shape(teacher.size), example, classes)
    return LatentAdversary(network.to(teacher.pipeline.device), teacher.denoiser.schedule, student)


def needs_trajectories(config: RunConfig) -> Literal["latents", "trajectories"]:
    """The training data of a method that may have alignment as an auxiliary loss."""
    return "trajectories" if config.align.weight != 0 else "latents"


def check_alignment(config: RunConfig, recipe: Recipe) -> None:
    """Raise ValueError where the settings of `align` are incompatible with the method or with other settings."""
    align: AlignConfig = config.align
    aligns = recipe.data_needs(config) == "trajectories"
    if align.weight != 0 and not recipe.supports.auxiliary_losses:
        raise ValueError(f"align.weight {align.weight}: --method {config.method} has no auxiliary losses; expects 0")
    if aligns and config.guidance.mode == "cfg":
        raise ValueError(
            "guidance.mode 'cfg': alignment learns from guided latents, which would be guided a second time; expects 'baked' "
            "or 'embedded'"
        )
    # several students need alignment as the method, and training of all weights
    requested = {"generations": align.generations > 1, "peer": align.peer != "none"}
    for name in (name for name, is_requested in requested.items() if is_requested):
        value = getattr(align, name)
        if recipe.Config is not AlignConfig:
            raise ValueError(f"align.{name} {value}: expects --method latent_alignment, not {config.method}")
        if config.lora.enabled:
            raise ValueError(f"align.{name} {value}: trains all weights; expects lora.enabled=false")
    if align.teachers and not aligns:
        raise ValueError(
            "align.teachers: these teachers generate the trajectories of alignment; expects --method latent_alignment, or "
            "align.weight above 0 with consistency or progressive"
        )
    if aligns and align.semantic.clip != 0 and config.dtype == "float16":
        raise ValueError(
            "align.semantic.clip: its gradients pass through the teacher's decoder, which overflows in dtype 'float16'; "
            "expects 'float32' or 'bfloat16'"
        )
