"""How near a student's images are to its teacher's of the same prompts and seeds, added to the student's row."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from gendistill.evaluation.evaluator import Evaluator
from gendistill.metrics.features.matrix import Features
from gendistill.metrics.measure import measure_pairs
from gendistill.metrics.metric import ImagePairs
from gendistill.metrics.pairs.perceptual import Lpips, available_lpips
from gendistill.metrics.protocol import Evaluation
from gendistill.metrics.registry import METRICS, default_metrics

FIDELITY_IMAGES = 256


def wants_fidelity(evaluator: Evaluator) -> bool:
    """Whether a metric of pairs of images is to be computed at all."""
    return any(METRICS[name].of_pairs for name in evaluator.requested or default_metrics(of_pairs=True))


def lpips_for(evaluator: Evaluator, device: str) -> Lpips | None:
    """LPIPS where its weights are on this machine.

    Raises:
        ValueError: they are not, and it was asked for.
    """
    lpips, why = available_lpips(device=device)
    if lpips is None and "lpips" in (evaluator.requested or ()):
        raise ValueError(why)
    return lpips


def with_fidelity(
    row: Evaluation,
    images: Tensor,
    teacher_images: Tensor,
    features: Features,
    teacher_features: Features,
    evaluator: Evaluator,
    lpips: Lpips | None = None,
) -> Evaluation:
    """The row with the metrics of pairs that were asked for, or the usual ones; as it is where the images differ in size.

    Args:
        images, teacher_images: uint8 (N, 3, H, W).
        features, teacher_features: (M, D), of these images or of more.
    """
    if images.shape != teacher_images.shape:
        return row
    pairs = ImagePairs(images, teacher_images, features, teacher_features, lpips)
    found = measure_pairs(pairs, evaluator.requested, intervals=evaluator.intervals, seed=evaluator.seed)
    scores, intervals = {**row.scores, **found.values}, {**row.intervals, **found.intervals}
    return dataclasses.replace(row, scores=scores, intervals=intervals)
