"""Losses by the names that settings know them by, with their weights in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from gendistill.losses import feature_maps as features
from gendistill.losses import relations
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section


class FeatureConfig(Section):
    """How far inner layers are apart: weights, 0 is off."""

    hints: Weight = Field(1.0, description="squared error after a 1x1 convolution (FitNets)")
    attention: Weight = Field(0.0, description="attention transfer: where, not what")
    gram: Weight = Field(0.0, description="Gram matrices: what, not where")
    layers: dict[str, str] | None = Field(
        None,
        description="teacher's layer: student's layer, by path; matched by resolution and depth where not given",
        examples=["layers of the student by those of the teacher such as {blocks.2: blocks.1}"],
    )


class RelationConfig(Section):
    """How far the relations between the images of a batch are apart: weights, 0 is off."""

    distance: Weight = Field(0.0, description="RKD, of pairs")
    angle: Weight = Field(0.0, description="RKD, of triplets")
    similarity: Weight = Field(0.0, description="similarity-preserving")
    correlation: Weight = Field(0.0, description="correlation congruence")
    contrastive: Weight = Field(0.0, description="InfoNCE between student and teacher images of the same noise")


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
