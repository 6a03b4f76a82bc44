"""Losses between a student generator and its teacher: images, feature maps, relations between images, and patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gendistill.gan.perception import Perception
from gendistill.losses.distributions import patch_projections, patch_sliced_wasserstein
from gendistill.losses.pixel import l1, l2, multi_scale, perceptual_distance
from gendistill.losses.terms import (
    FEATURE_LOSSES,
    RELATION_LOSSES,
    FeatureConfig,
    Loss,
    RelationConfig,
    Term,
    feature_terms,
    relation_terms,
    weighted,
)
from gendistill.runtime.device import to_device
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section


class OutputConfig(Section):
    """Weights of the distances between images of student and teacher of the same input; 0 is off."""

    l1: Weight = Field(
        1.0,
        description="Weight of the absolute error of pixels",
        json_schema_extra=about(paper=papers.GAN_DISTILLATION),
    )
    l2: Weight = Field(
        0.0,
        description="Weight of the squared error of pixels",
        json_schema_extra=about(paper=papers.GAN_DISTILLATION),
    )
    multiscale: Weight = Field(
        0.0, description="Weight of the absolute error of pixels at the full, half, quarter, ... resolution"
    )
    perceptual: Weight = Field(
        1.0,
        description="Weight of the distance of a feature network's layers",
        json_schema_extra=about(paper=papers.LPIPS, at="equation 1"),
    )
    perceptual_network: str = Field(
        "discriminator",
        description="Feature network of the perceptual distance: the teacher's discriminator, emoji (the network of "
        "fd-emoji), or torchvision:NAME",
    )


class DistributionConfig(Section):
    """Weights of the distances between distributions of patches, regardless of their position; 0 is off."""

    patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 6},
        description="Weight of the sliced Wasserstein distance between the patches of each image and of its teacher's",
        validate_default=True,
        json_schema_extra=about(paper=papers.PATCHES, at="section 3.2"),
    )
    real_patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 10},
        description="Weight of the same distance between the patches of all images of a micro-batch and of real images, "
        "without mean colours",
        validate_default=True,
        json_schema_extra=about(paper=papers.PATCHES, at="section 3.2"),
    )


class DistillationLossConfig(Section):
    """The losses between a student generator and its teacher."""

    output: OutputConfig = OutputConfig()
    features: FeatureConfig = FeatureConfig()
    relations: RelationConfig = RelationConfig()
    distribution: DistributionConfig = DistributionConfig()


PATCH, PROJECTIONS, PATCHES = 5, 8, 64  # edge of a patch in pixels; random projections; patches along an edge, about

OUTPUT_LOSSES: dict[str, Loss] = {"l1": l1, "l2": l2, "multiscale": multi_scale}


@dataclass(frozen=True)
class GeneratorOutput:
    """The images (B, C, H, W) of a generator, and the feature maps of its matched layers."""

    images: Tensor
    features: list[Tensor] = field(default_factory=list)

    def detach(self) -> GeneratorOutput:
        return GeneratorOutput(self.images.detach(), [features.detach() for features in self.features])


@dataclass(frozen=True)
class TeacherTargets:
    """The targets of a student for one batch of inputs.

    Attributes:
        generated: images and feature maps of the teacher from the same inputs.
        maps: feature maps of the teacher's images in the perceptual network, for the losses that need them.
        real: real images (B, C, H, W), not paired with the inputs.
    """

    generated: GeneratorOutput
    maps: list[Tensor]
    real: Tensor


class GanDistillationLoss:
    """All losses between a student generator and its teacher.

    Args:
        perception: the perceptual network; None for losses in pixels only.
    """

    def __init__(self, config: DistillationLossConfig, perception: Perception | None) -> None:
        self.config, self.perception = config, perception

    def needs_features(self, step: int) -> bool:
        """Whether a loss of this step needs feature maps of the generators."""
        return any(weighted(FEATURE_LOSSES, self.config.features, step))

    @torch.no_grad()
    def targets(self, generated: GeneratorOutput, real: Tensor, labels: Tensor | None, step: int) -> TeacherTargets:
        """The targets from the teacher's output `generated` and real images, for the losses of this step."""
        perceptual = weight_at(self.config.output.perceptual, step)
        needs_maps = perceptual or any(weighted(RELATION_LOSSES, self.config.relations, step))
        maps = self.perception.maps(generated.images, labels) if self.perception is not None and needs_maps else []
        return TeacherTargets(generated, maps, real)

    def terms(
        self,
        generated: GeneratorOutput,
        targets: TeacherTargets,
        peers: Sequence[GeneratorOutput],
        labels: Tensor | None,
        step: int,
    ) -> Iterator[Term]:
        """Name, weight and value (0-d) of each loss term of this step.

        Args:
            generated: the output of the student.
            peers: outputs of other students from the same inputs, which are further targets as the teacher's output is.
        """
        config, output = self.config, self.config.output
        target_outputs = [targets.generated, *peers]
        for name, weight, loss in weighted(OUTPUT_LOSSES, output, step):
            yield name, weight, _mean(loss(generated.images, target.images) for target in target_outputs)
        yield from self._patch_terms(generated, targets, target_outputs, step)
        teacher_features = targets.generated.features  # empty where no loss needs them
        if teacher_features:
            yield from feature_terms(config.features, step, generated.features, teacher_features)
        perceptual = weight_at(output.perceptual, step)
        if not (perceptual or any(weighted(RELATION_LOSSES, config.relations, step))):
            return
        maps = [] if self.perception is None else self.perception.maps(generated.images, labels)
        if perceptual and maps:
            yield "perceptual", perceptual, perceptual_distance(maps, targets.maps)
        student_embeddings = _embeddings(generated.images, maps)
        teacher_embeddings = _embeddings(targets.generated.images, targets.maps)
        yield from relation_terms(config.relations, step, student_embeddings, teacher_embeddings)

    def _patch_terms(
        self, generated: GeneratorOutput, targets: TeacherTargets, target_outputs: Sequence[GeneratorOutput], step: int
    ) -> Iterator[Term]:
        """Distances between the patches of each image and of its target, and between those of all images and of real ones."""
        config = self.config.distribution
        if weight := weight_at(config.patches, step):
            projections = _projections(generated.images, step, centred=False)
            distances = (
                _patch_distance(generated.images, target.images, projections, paired=True) for target in target_outputs
            )
            yield "patches", weight, _mean(distances)
        if weight := weight_at(config.real_patches, step):
            projections = _projections(generated.images, step, centred=True)
            yield "real_patches", weight, _patch_distance(generated.images, targets.real, projections, paired=False)


def _patch_distance(images: Tensor, others: Tensor, projections: Tensor, *, paired: bool) -> Tensor:
    edge = min(images.shape[2:])
    levels, stride = 2 if edge >= 2 * projections.shape[-1] else 1, max(1, edge // PATCHES)
    return patch_sliced_wasserstein(images, others, projections, paired=paired, levels=levels, stride=stride)


def _projections(images: Tensor, step: int, *, centred: bool) -> Tensor:
    """The random projections of patches of this step, the same on every process."""
    generator = torch.Generator().manual_seed(2 * step + centred)
    size = min(PATCH, *images.shape[2:])
    return to_device(patch_projections(PROJECTIONS, images.shape[1], size, generator, centred=centred), images.device)


def _mean(losses: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _embeddings(images: Tensor, maps: list[Tensor]) -> Tensor:
    """The embeddings (B, D) of relational losses: the last pooled perceptual features, or images of 8 x 8 pixels."""
    return maps[-1].float().mean((2, 3)) if maps else F.adaptive_avg_pool2d(images, 8).flatten(1)
