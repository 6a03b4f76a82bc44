"""Losses by the names that settings know them by, with their weights in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gendistill.losses import feature_maps as features
from gendistill.losses import relations
from gendistill.settings.schedule import weight_at

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
    """Name, weight and loss (0-d) of each that counts in this step, between embeddings (B, D) of the same pictures."""
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
