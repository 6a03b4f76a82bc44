"""Diversity of the images of one prompt, which a mode collapse reduces first."""

from collections.abc import Hashable, Sequence

import numpy as np

from gendistill.metrics.features.matrix import Features, feature_matrix, unit_rows
from gendistill.metrics.metric import Metric, Need


def intra_prompt_diversity(features: Features, groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """Mean cosine distance in [0, 2] between two images of one prompt, for each prompt with at least two.

    `groups`: the prompt of each image of `features` (N, D). A model that generates the same image from every seed has 0.
    The score of the set is the mean of the values.

    Raises:
        ValueError: the length of `groups` is not N, no prompt has two images, or an image's features are zero.
    """
    x = unit_rows(feature_matrix(features))
    if len(groups) != len(x):
        raise ValueError(f"groups: got {len(groups)} for {len(x)} images, expects one per image.")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    diversity = {}
    for group, indices in members.items():
        n = len(indices)
        if n > 1:
            # Over pairs of two different images: |sum of x|^2 is the sum of all n^2 cosines, n of which are 1.
            total = float(np.square(x[indices].sum(axis=0)).sum())
            diversity[group] = max(1 - (total - n) / (n * (n - 1)), 0.0)
    if not diversity:
        raise ValueError("groups: got one image for every prompt, expects at least two for one prompt.")
    return diversity


DIVERSITY = Metric(
    name="diversity",
    explanation="Mean cosine distance between images of the same prompt.",
    compute=lambda inputs: np.array(list(intra_prompt_diversity(inputs.features, inputs.prompts).values())),
    higher_is_better=True,
    needs=frozenset({Need.PROMPTS, Need.REPEATED_PROMPTS}),
    default="full",
    in_summary=False,
)
