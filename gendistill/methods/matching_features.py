"""Feature matching: the student's images and real ones as distributions in features of a frozen network.

No further network is trained. Gradients pass through the network and the teacher's decoder to the student. The features of real
images are computed once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gendistill.data.batches import Batch, LatentData
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.latent_discriminator import condition_of, number_of_classes
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import Networks
from gendistill.gan.augmentation import NUM_UNIFORM, augment
from gendistill.losses.feature_matching import FEATURE_MATCHING, FrechetMoments, log_similarity, median_distance
from gendistill.methods.denoiser_method import Critic, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.image_tower import ImageTower
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.methods.student_samples import StudentSampler
from gendistill.runtime.device import to_device
from gendistill.runtime.progress import advancing_bar
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.codec import Codec
from gendistill.samplers.conditioning import Conditioning
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight
from gendistill.settings.section import Section
from gendistill.training.method import Update
from gendistill.training.processes import of_all_processes

AT_ONCE = 16  # images that are decoded at once for the bank
TINY_CLIP, LARGEST_FOR_TINY_CLIP = "assets/tiny-clip", 64  # which sees 32 pixels


class FeatureMatchingConfig(Section):
    """Feature matching (`--method feature_matching`), or feature matching in addition to another method's loss."""

    weight: Weight = Field(0.0, description="Weight of feature matching in addition to another method's loss; 0 is off")
    loss: Literal["frechet", "mmd", "drift"] = Field(
        "mmd",
        description="Distance: the Fréchet distance of the student's latest samples, or the maximum mean discrepancy of a "
        "batch, both of features and conditions together; or a drift towards real features of the same prompt and away from "
        "the student's other ones",
        json_schema_extra=about(paper=papers.FD_LOSS),
    )
    population: int = Field(
        2048,
        ge=2,
        description="Latest samples of the student whose moments frechet compares with the real ones, for each step count",
        json_schema_extra=about("samples", paper=papers.FD_LOSS),
    )
    condition: float = Field(
        0.5, ge=0, description="Weight of the conditions next to the features, for frechet; 0 compares the features alone"
    )
    features: str | None = Field(
        None,
        description="Network of the features, not that of validation: clip, dinov2, or a folder or MODEL/TAG of open_clip; by "
        "default assets/tiny-clip for images of at most 64 pixels, and clip for larger ones",
        json_schema_extra=about(paper=papers.CLIP, path=True),
    )
    bank: int = Field(4096, ge=2, description="Real images whose features are computed once", json_schema_extra=about("images"))
    augment: list[Literal["color", "translation", "cutout"]] = Field(
        ["translation"],
        description="Random differentiable changes of the student's and of the real images before the network",
        json_schema_extra=about(paper=papers.DIFF_AUGMENT),
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Decay per step of the student's moving average with --method feature_matching"
    )


def condition_vectors(conditioning: Conditioning, like: Tensor, num_classes: int) -> Tensor:
    """The conditions of samples `like` (N, ...) as vectors (N, C) of length 1: embeddings of prompts, or one-hot classes; zeros
    where there are none."""
    condition = condition_of(conditioning)
    if condition is None:
        return like.new_zeros(len(like), 1)
    return F.normalize(condition, dim=1) if condition.is_floating_point() else F.one_hot(condition, num_classes).float()


class FeatureBank:
    """Features (N, D) of real images with their conditions as vectors (N, C).

    Args:
        num_classes: number of classes, for class labels.
    """

    def __init__(self, features: Tensor, conditions: Tensor, num_classes: int = 0) -> None:
        self.features, self.conditions, self.num_classes = features, conditions, num_classes
        self.scale, self.condition_scale = median_distance(features), median_distance(conditions)


class FeatureMatching:
    """The loss: an `AuxiliaryLoss` of any method of denoisers.

    Args:
        sampler: generates the student's samples.
    """

    name = "feature_matching"
    critics: Sequence[Critic] = ()

    def __init__(
        self, config: FeatureMatchingConfig, sampler: StudentSampler, codec: Codec, tower: ImageTower, bank: FeatureBank
    ) -> None:
        self.config, self.sampler, self.codec, self.tower, self.bank = config, sampler, codec, tower, bank
        self.moments: dict[int, FrechetMoments] = {}
        if config.loss == "frechet":
            real = self.joint(bank.features, bank.conditions)
            self.moments = {number: FrechetMoments(real, config.population) for number in set(sampler.numbers.values())}

    @property
    def weight(self) -> float | dict[float, float]:
        return self.config.weight

    def buffers(self) -> dict[str, Tensor]:
        """The student's moments, which a resumed run needs."""
        means = {f"{number}.mean": moments.mean for number, moments in self.moments.items()}
        return means | {f"{number}.second": moments.second for number, moments in self.moments.items()}

    def joint(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Features and weighted conditions (N, D + C) in units of their median distances."""
        weight = self.config.condition / self.bank.condition_scale
        return torch.cat([features / self.bank.scale, weight * conditions], dim=1)

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Generator[Update, None, LossAndLogs]:
        yield from ()
        samples = self.sampler.generate(batch, random, learning=True)
        images = self.codec.decode_unclamped(samples.x_0)
        features = features_of(self.tower, images, self.config, random)
        bank = self.bank
        conditions = condition_vectors(samples.conditioning, features, self.bank.num_classes)
        if self.moments:
            moments, joint = self.moments[samples.step], self.joint(features, conditions)
            moments.update(of_all_processes(joint.detach()))
            return moments.loss(joint), {}
        among = log_similarity(conditions, conditions, bank.condition_scale)
        between = log_similarity(conditions, bank.conditions, bank.condition_scale)
        return FEATURE_MATCHING[self.config.loss](features, bank.features, among, between, bank.scale), {}


def features_of(tower: ImageTower, images: Tensor, config: FeatureMatchingConfig, random: PerSampleRandom) -> Tensor:
    """Features (B, D) of augmented images (B, 3, H, W) in [-1, 1]."""
    if config.augment:
        images = augment(images, to_device(random.uniform((NUM_UNIFORM,)), images.device), tuple(config.augment))
    return tower(images)


@torch.no_grad()
def bank_of(data: LatentData, teacher: Teacher, tower: ImageTower, config: FeatureMatchingConfig, seed: int) -> FeatureBank:
    """The features of at most `bank` rows of the training data, spread evenly over it."""
    device, num_classes = teacher.pipeline.device, number_of_classes(teacher.network.config)
    count = min(config.bank, len(data))
    features, conditions = list[Tensor](), list[Tensor]()
    start = 0
    chosen = (torch.arange(count) * len(data)) // count
    with advancing_bar("features of real images (feature_matching.bank)", count) as advance:
        for size in data.cache.groups.values():  # the latents of a group have one shape
            group = chosen[(chosen >= start) & (chosen < start + size)]
            for rows in group.split(AT_ONCE):
                random = PerSampleRandom(seed, 0, int(rows[0]), len(rows))
                batch = data.batch(rows, random, device)
                features.append(features_of(tower, teacher.codec.decode(batch.latents), config, random))
                conditions.append(condition_vectors(batch.conditioning, features[-1], num_classes))
                advance(len(rows))
            start += size
    return FeatureBank(torch.cat(features), torch.cat(conditions), num_classes)


def default_features(size: Sequence[int]) -> str:
    """The network of features for images of a size in pixels."""
    return TINY_CLIP if max(size) <= LARGEST_FOR_TINY_CLIP else "clip"


def feature_matching_of(context: DenoiserContext, networks: Networks, steps: Sequence[int]) -> list[FeatureMatching]:
    """The loss by the settings `feature_matching`; empty on the meta device, where there are neither decoder nor data."""
    if context.opened is None or context.data is None:
        return []
    config, teacher = context.config, context.opened
    settings: FeatureMatchingConfig = config.feature_matching
    name = settings.features or default_features(teacher.size)
    _require_other_network(name, config)
    tower = ImageTower.called(name, "feature_matching.features", teacher.pipeline.device)
    bank = bank_of(context.data, teacher, tower, settings, config.seed)
    sampler = StudentSampler(networks, Guidance(context.unconditional, config.guidance), steps, context.solvers[0], last=True)
    return [FeatureMatching(settings, sampler, teacher.codec, tower, bank)]


class FeatureMatchingDistillation(DenoiserMethod):
    """Feature matching as the method: the student alone is trained."""

    name = "feature_matching"

    def __init__(self, networks: Networks, matching: Sequence[FeatureMatching], ema_decay: float) -> None:
        self.networks, self.matching, networks.decay = networks, matching, ema_decay

    def buffers(self) -> dict[str, Tensor]:
        return {name: buffer for matching in self.matching for name, buffer in matching.buffers().items()}

    @property
    def monotone(self) -> bool:
        return False  # distances of small batches vary, and the student need not stay near its teacher

    @property
    def shards(self) -> bool:
        return False

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        for matching in self.matching:
            loss, logs = yield from matching.updates(batch, step, random)
            yield Update(loss, logs={"loss": loss.detach(), **logs})


class FeatureMatchingRecipe(Recipe):
    """One stage; the student is trained, validated and exported with one solver, the first of `solvers`."""

    name = section = "feature_matching"
    Config = FeatureMatchingConfig
    summary = "Matches the student's images with real ones of the same prompts in features of a frozen network"
    supports = Supports(feature_matching=True, planning=False)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, networks, solvers = context.config, context.networks(), context.solvers[:1]
        matching = feature_matching_of(context, networks, config.steps)
        method = FeatureMatchingDistillation(networks, matching, config.feature_matching.ema_decay)
        yield Stage(method, config.trainer, steps=config.steps, solvers=solvers)


def check_additions(config: RunConfig, recipe: Recipe) -> None:
    """Raise ValueError where feature matching or an adversary is requested of a method without it, or cannot be computed."""
    supported = {"feature_matching": recipe.supports.feature_matching, "adversarial": recipe.supports.adversary}
    for section in (section for section, is_supported in supported.items() if not is_supported):
        if (weight := getattr(config, section).weight) != 0:
            raise ValueError(f"{section}.weight {weight}: --method {config.method} has no such additional loss; expects 0")
    settings: FeatureMatchingConfig = config.feature_matching
    if settings.weight == 0 and recipe.section != "feature_matching":
        return
    _require_other_network(settings.features, config)
    if config.dtype == "float16":
        raise ValueError(
            "feature_matching: its gradients pass through the teacher's decoder, which overflows in dtype 'float16'; expects "
            "'float32' or 'bfloat16'"
        )


def _require_other_network(features: str | None, config: RunConfig) -> None:
    """Raise ValueError where the network of features is that of validation."""
    if features is not None and config.validation_extractor == features:
        raise ValueError(
            f"feature_matching.features {features}: is the network of validation; expects another one than validation_extractor"
        )
