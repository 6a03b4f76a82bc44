"""Fidelity of a student's images to its teacher's images of the same prompts and seeds, added to the student's row."""

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
    """Whether a metric of image pairs is requested, or is a default metric."""
    return any(METRICS[name].of_pairs for name in evaluator.requested or default_metrics(of_pairs=True))


def lpips_for(evaluator: Evaluator, device: str) -> Lpips | None:
    """LPIPS if its weights are on this machine.

    Raises:
        ValueError: the weights are missing, and LPIPS was requested.
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
    """The row with the requested or default metrics of image pairs; unchanged if the images differ in size.

    Args:
        images, teacher_images: uint8 (N, 3, H, W).
        features, teacher_features: (M, D), of these images or of more images.
    """
    if images.shape != teacher_images.shape:
        return row
    pairs = ImagePairs(images, teacher_images, features, teacher_features, lpips)
    fidelity = measure_pairs(pairs, evaluator.requested, intervals=evaluator.intervals, seed=evaluator.seed)
    scores, intervals = {**row.scores, **fidelity.values}, {**row.intervals, **fidelity.intervals}
    return dataclasses.replace(row, scores=scores, intervals=intervals)
