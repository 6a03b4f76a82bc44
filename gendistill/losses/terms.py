"""Registries of losses by the names of their settings, and weighted loss terms of a training step."""

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
    """Weights of the distances between feature maps of student and teacher; 0 is off."""

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


class PairRelationConfig(Section):
    """Weights of the distances between the pairwise relations of a micro-batch in student and teacher."""

    distance: Weight = Field(
        0.0,
        description="Weight of the difference of pairwise distances in a micro-batch (RKD)",
        json_schema_extra=about(paper=papers.RKD, at="section 3.2.1"),
    )
    angle: Weight = Field(
        0.0,
        description="Weight of the difference of the angles of triplets in a micro-batch (RKD)",
        json_schema_extra=about(paper=papers.RKD, at="section 3.2.2"),
    )


class RelationConfig(PairRelationConfig):
    """Weights of the distances between the relations of a micro-batch's images in student and teacher; 0 is off.

    A micro-batch has the samples of one process, or of one of its parts with `trainer.gradient_accumulation_steps`.
    """

    similarity: Weight = Field(
        0.0,
        description="Weight of the difference of the similarity matrices of a micro-batch",
        json_schema_extra=about(paper=papers.SIMILARITY, at="section 3"),
    )
    correlation: Weight = Field(
        0.0,
        description="Weight of the difference of the correlation matrices of a micro-batch",
        json_schema_extra=about(paper=papers.CORRELATION, at="section 3"),
    )
    contrastive: Weight = Field(
        0.0,
        description="Weight of InfoNCE between the student's and the teacher's features of a sample, against the others of "
        "a micro-batch",
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
    """Name, weight and function of each loss whose weight at `step` is not 0; `weights` has an attribute for each name."""
    for name, loss in losses.items():
        if weight := weight_at(getattr(weights, name), step):
            yield name, weight, loss


def relation_terms(weights: object, step: int, student: Tensor, teacher: Tensor) -> Iterator[Term]:
    """Name, weight and value (0-d) of each relational loss of this step, between embeddings (B, D) of the same samples."""
    for name, weight, loss in weighted(RELATION_LOSSES, weights, step):
        yield name, weight, loss(student, teacher)


def feature_terms(weights: object, step: int, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Iterator[Term]:
    """Name, weight and value (0-d) of each feature loss of this step, averaged over the layers; nothing without layers.

    Feature maps (B, C, ...) are divided by the root mean square of the teacher's in the micro-batch, so that a weight has the
    same meaning in every layer of every network.
    """
    pairs = [_scaled(*pair) for pair in zip(student, teacher, strict=True)]
    for name, weight, loss in weighted(FEATURE_LOSSES, weights, step) if pairs else ():
        yield name, weight, torch.stack([loss(*pair) for pair in pairs]).mean()


def _scaled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    scale = teacher.float().square().mean().sqrt().clamp(min=1e-8)
    return student.float() / scale, teacher.float() / scale
