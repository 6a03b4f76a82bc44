"""What a student GAN is told: of its teacher's images, the layers behind them, their relations, and how sharp they are."""

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
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section


class OutputConfig(Section):
    """How far the student's images are from the teacher's of the same noise: weights, 0 is off."""

    l1: Weight = 1.0
    l2: Weight = 0.0
    multiscale: Weight = Field(0.0, description="L1 at the full, half, quarter, ... resolution")
    perceptual: Weight = Field(1.0, description="distance of a feature network's maps")
    perceptual_network: str = Field(
        "discriminator",
        description="that network: the teacher's discriminator; emoji (which fd-emoji looks through too); torchvision:NAME",
    )


class DistributionConfig(Section):
    """How far the images' patches are apart as sets, wherever in an image they lie: weights, 0 is off."""

    patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 6},
        description="of each image and its teacher's, sliced Wasserstein: sharp as that one is",
        validate_default=True,
    )
    real_patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 10},
        description="of all images and as many real ones, without their mean colours: sharp as these are",
        validate_default=True,
    )


class DistillationLossConfig(Section):
    """The losses between a student GAN and its teacher."""

    output: OutputConfig = OutputConfig()
    features: FeatureConfig = FeatureConfig()
    relations: RelationConfig = RelationConfig()
    distribution: DistributionConfig = DistributionConfig()


PATCH, LINES, PLACES = 5, 8, 64  # pixels of an edge; directions; patches along an edge, about

OUTPUT_LOSSES: dict[str, Loss] = {"l1": l1, "l2": l2, "multiscale": multi_scale}


@dataclass(frozen=True)
class GeneratorOutput:
    """Images (B, C, H, W) of a network, and its features of the layers that are matched."""

    images: Tensor
    features: list[Tensor] = field(default_factory=list)

    def detach(self) -> GeneratorOutput:
        return GeneratorOutput(self.images.detach(), [of.detach() for of in self.features])


@dataclass(frozen=True)
class TeacherTargets:
    """What a student of the same noise is held against: its teacher's images, features, and how a network sees them; and real
    images (B, C, H, W), of which none belongs to any of its own."""

    generated: GeneratorOutput
    maps: list[Tensor]
    real: Tensor


class GanDistillationLoss:
    """All losses between a student and its teacher.

    Args:
        perception: what images look like to a network; None for pixels alone.
    """

    def __init__(self, config: DistillationLossConfig, perception: Perception | None) -> None:
        self.config, self.perception = config, perception

    def needs_features(self, step: int) -> bool:
        """Whether a loss of this step asks for the layers behind the images."""
        return any(weighted(FEATURE_LOSSES, self.config.features, step))

    @torch.no_grad()
    def targets(self, generated: GeneratorOutput, real: Tensor, labels: Tensor | None, step: int) -> TeacherTargets:
        looks = weight_at(self.config.output.perceptual, step) or any(weighted(RELATION_LOSSES, self.config.relations, step))
        maps = self.perception.maps(generated.images, labels) if self.perception is not None and looks else []
        return TeacherTargets(generated, maps, real)

    def terms(
        self,
        generated: GeneratorOutput,
        targets: TeacherTargets,
        peers: Sequence[GeneratorOutput],
        labels: Tensor | None,
        step: int,
    ) -> Iterator[Term]:
        """Name, weight and loss (0-d) of each that counts in this step.

        Args:
            generated: the student's.
            peers: other students' images of the same noise, which are matched as the teacher's are.
        """
        config, output = self.config, self.config.output
        guides = [targets.generated, *peers]
        for name, weight, loss in weighted(OUTPUT_LOSSES, output, step):
            yield name, weight, _mean(loss(generated.images, of.images) for of in guides)
        yield from self._as_sets(generated, targets, guides, step)
        theirs = targets.generated.features  # none where no loss looks at them
        if theirs:
            yield from feature_terms(config.features, step, generated.features, theirs)
        seen = weight_at(output.perceptual, step)
        if not (seen or any(weighted(RELATION_LOSSES, config.relations, step))):
            return
        maps = [] if self.perception is None else self.perception.maps(generated.images, labels)
        if seen and maps:
            yield "perceptual", seen, perceptual_distance(maps, targets.maps)
        here, there = _embedded(generated.images, maps), _embedded(targets.generated.images, targets.maps)
        yield from relation_terms(config.relations, step, here, there)

    def _as_sets(
        self, generated: GeneratorOutput, targets: TeacherTargets, guides: Sequence[GeneratorOutput], step: int
    ) -> Iterator[Term]:
        """Patches of each image beside those of the image that it imitates, of all of them beside those of real ones."""
        config = self.config.distribution
        if weight := weight_at(config.patches, step):
            lines = _lines(generated.images, step, centred=False)
            yield "patches", weight, _mean(_patches(generated.images, of.images, lines, paired=True) for of in guides)
        if weight := weight_at(config.real_patches, step):
            lines = _lines(generated.images, step, centred=True)
            yield "real_patches", weight, _patches(generated.images, targets.real, lines, paired=False)


def _patches(images: Tensor, others: Tensor, lines: Tensor, *, paired: bool) -> Tensor:
    edge = min(images.shape[2:])
    levels, stride = 2 if edge >= 2 * lines.shape[-1] else 1, max(1, edge // PLACES)
    return patch_sliced_wasserstein(images, others, lines, paired=paired, levels=levels, stride=stride)


def _lines(images: Tensor, step: int, *, centred: bool) -> Tensor:
    """A step's directions of patches, the same for every process."""
    generator = torch.Generator().manual_seed(2 * step + centred)
    size = min(PATCH, *images.shape[2:])
    return patch_projections(LINES, images.shape[1], size, generator, centred=centred).to(images.device)


def _mean(losses: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _embedded(images: Tensor, maps: list[Tensor]) -> Tensor:
    """(B, D), what relations are measured between: a network's last view of the images, or small copies of them."""
    return maps[-1].float().mean((2, 3)) if maps else F.adaptive_avg_pool2d(images, 8).flatten(1)
