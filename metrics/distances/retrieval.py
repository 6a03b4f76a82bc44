"""Is an image nearer to its own prompt than to others? R-precision with CLIP (Park et al. 2021, section 4)."""

from collections.abc import Sequence

import numpy as np

from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, unit_rows
from gendistill.metrics.metric import Metric, Need

# Cosines that differ by less are equal: those of prompts with the same tokens, such as "A cat" and "a cat".
TOLERANCE = 1e-6


def retrieval_precision(
    image_embeddings: Features, text_embeddings: Features, prompts: Sequence[str], candidates: int = 100, seed: int = 0
) -> Matrix:
    """Per image (N,), in [0, 1]: 1 if its own prompt has the highest cosine among `candidates` prompts, otherwise 0.

    `image_embeddings` and `text_embeddings` (N, D) are one of each per image. The other prompts are sampled with `seed` from
    the prompts with a different text, or are all of these if there are fewer than `candidates`. If t other prompts have the
    same cosine as the own prompt and none has a higher one, the value is 1 / (1 + t), so that a text encoder that does not
    distinguish the prompts scores no more than chance. The score of the set is the mean.

    Raises:
        ValueError: the shapes differ, the length of `prompts` is not N, `candidates` is below 2, or all prompts are equal.
    """
    images, texts = feature_matrices(image_embeddings, text_embeddings, ("image embeddings", "text embeddings"), 1)
    if len(images) != len(texts) or len(prompts) != len(texts):
        raise ValueError(
            f"prompts: got {len(images)} images, {len(texts)} text embeddings and {len(prompts)} prompts, expects equally many."
        )
    numbers: dict[str, int] = {}
    own = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])  # number of each image's own prompt
    if len(numbers) < 2:
        raise ValueError("prompts: got only one text, expects at least two different ones.")
    if candidates < 2:
        raise ValueError(f"candidates: got {candidates}, expects at least 2, the own prompt and another.")
    texts = unit_rows(texts, "text embeddings")[np.unique(own, return_index=True)[1]]  # (P, D), once per prompt
    images = unit_rows(images, "image embeddings")
    rng = np.random.default_rng(seed)
    others = min(candidates, len(numbers)) - 1
    values = np.empty(len(images))
    for rows in row_blocks(len(images), len(numbers)):
        cosines = images[rows] @ texts.T
        for row, (cosine, own_prompt) in enumerate(zip(cosines, own[rows], strict=True), start=rows.start):
            sampled = rng.choice(len(numbers) - 1, others, replace=False, shuffle=False)
            margin = cosine[sampled + (sampled >= own_prompt)] - cosine[own_prompt]  # the shift by one skips the own prompt
            values[row] = 0.0 if margin.max() > TOLERANCE else 1 / (1 + int((margin >= -TOLERANCE).sum()))
    return values


CLIP_R = Metric(
    name="clip_r",
    label="CLIP-R",
    explanation="Fraction of images that fit their own prompt best among 100.",
    compute=lambda inputs: retrieval_precision(
        inputs.image_embeddings, inputs.text_embeddings, inputs.prompts, seed=inputs.seed
    ),
    higher_is_better=True,
    needs=frozenset({Need.CLIP, Need.DIFFERENT_PROMPTS}),
    default="full",
    in_summary=False,
)
