"""Losses by the names that settings know them by, with their weights in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from gendistill.losses import feature_maps as features
from gendistill.losses import relations
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section


class FeatureConfig(Section):
    """Distances between the layers of student and teacher: weights, 0 is off."""

    hints: Weight = Field(
        1.0,
        description="Weight of the squared error between layers, after a learned 1x1 convolution of the student's",
        json_schema_extra=about(paper=papers.FITNETS, at="equation 3"),
    )
    attention: Weight = Field(
        0.0,
        description="Weight of attention transfer, which compares where the layers are active",
        json_schema_extra=about(paper=papers.ATTENTION, at="section 3.1"),
    )
    gram: Weight = Field(
        0.0,
        description="Weight of the distance of Gram matrices, which compare the layers' textures",
        json_schema_extra=about(paper=papers.GRAM, at="equation 4"),
    )
    layers: dict[str, str] | None = Field(
        None,
        description="Layers of the student by those of the teacher, as module paths; null matches them by resolution and depth",
        examples=[{"blocks.2": "blocks.1"}],
    )


class RelationConfig(Section):
    """Differences of the relations between the images of a batch: weights, 0 is off."""

    distance: Weight = Field(
        0.0,
        description="Weight of the difference of pairwise distances (RKD)",
        json_schema_extra=about(paper=papers.RKD, at="section 3.2.1"),
    )
    angle: Weight = Field(
        0.0,
        description="Weight of the difference of the angles of triplets (RKD)",
        json_schema_extra=about(paper=papers.RKD, at="section 3.2.2"),
    )
    similarity: Weight = Field(
        0.0,
        description="Weight of the difference of the similarity matrices",
        json_schema_extra=about(paper=papers.SIMILARITY, at="section 3"),
    )
    correlation: Weight = Field(
        0.0,
        description="Weight of the difference of the correlation matrices",
        json_schema_extra=about(paper=papers.CORRELATION, at="section 3"),
    )
    contrastive: Weight = Field(
        0.0,
        description="Weight of InfoNCE between the student's and the teacher's features of the same sample",
        json_schema_extra=about(paper=papers.CRD),
    )


Loss = Callable[[Tensor, Tensor], Tensor]
Term = tuple[str, float, Tensor]

FEATURE_LOSSES: dict[str, Loss] = {
    "hints": features.hint,
    "attention": features.attention_transfer,
    "gram": features.gram,
}
RELATION_LOSSES: dict[str, Loss] = {
    "distance": relations.rkd_distance,
    "angle": relations.rkd_angle,
    "similarity": relations.similarity_preserving,
    "correlation": relations.correlation_congruence,
    "contrastive": relations.contrastive,
}


def weighted(losses: Mapping[str, Loss], weights: object, step: int) -> Iterator[tuple[str, float, Loss]]:
    """Those of the losses whose weight, the attribute of `weights` of the same name, is not 0 in this step."""
    for name, loss in losses.items():
        if now := weight_at(getattr(weights, name), step):
            yield name, now, loss


def relation_terms(weights: object, step: int, ours: Tensor, theirs: Tensor) -> Iterator[Term]:
    """Name, weight and loss (0-d) of each that counts in this step, between embeddings (B, D) of the same images."""
    for name, weight, loss in weighted(RELATION_LOSSES, weights, step):
        yield name, weight, loss(ours, theirs)


def feature_terms(weights: object, step: int, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Iterator[Term]:
    """The same of features (B, C, ...) of several layers, averaged over the layers; none where there are no layers.

    Both are measured in the root mean square of the teacher's: a weight then means the same in every layer of every network.
    """
    pairs = [_scaled(*pair) for pair in zip(ours, theirs, strict=True)]
    for name, weight, loss in weighted(FEATURE_LOSSES, weights, step) if pairs else ():
        yield name, weight, torch.stack([loss(*pair) for pair in pairs]).mean()


def _scaled(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    scale = theirs.float().square().mean().sqrt().clamp(min=1e-8)
    return ours / scale, theirs / scale
