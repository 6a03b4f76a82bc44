"""Is the image nearer to its own prompt than to others? R-precision with CLIP (Park et al. 2021, section 4)."""

from collections.abc import Sequence

import numpy as np

from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, row_blocks, unit_rows
from gendistill.metrics.metric import Metric, Need

SAME = 1e-6  # cosines nearer than this are equal: those of prompts that the tokenizer makes equal, such as "A cat", "a cat"


def retrieval_precision(
    image_embeddings: Features, text_embeddings: Features, prompts: Sequence[str], candidates: int = 100, seed: int = 0
) -> Matrix:
    """Per image (N,), in [0, 1]: 1 where the own prompt has the highest cosine among `candidates` prompts, else 0.

    `image_embeddings` and `text_embeddings` (N, D), one of each an image. The other prompts are sampled with `seed` from
    those with another text, all of them where there are fewer than `candidates`. Where t other prompts are exactly as near
    as the own one and none is nearer, the image counts 1 / (1 + t): a text encoder that sees no difference scores
    no more than chance. The set's score is the mean.

    Raises:
        ValueError: shapes differ, `prompts` is not N long, `candidates` is below 2, or all prompts are equal.
    """
    images, texts = feature_matrices(image_embeddings, text_embeddings, ("image embeddings", "text embeddings"), 1)
    if len(images) != len(texts) or len(prompts) != len(texts):
        raise ValueError(
            f"prompts: got {len(images)} images, {len(texts)} text embeddings and {len(prompts)} prompts, expects equally many."
        )
    first: dict[str, int] = {}
    own = np.array([first.setdefault(prompt, len(first)) for prompt in prompts])  # number of each image's prompt
    if len(first) < 2:
        raise ValueError("prompts: got only one text, expects at least two different ones.")
    if candidates < 2:
        raise ValueError(f"candidates: got {candidates}, expects at least 2, the own prompt and another.")
    texts = unit_rows(texts, "text embeddings")[np.unique(own, return_index=True)[1]]  # (P, D), once per prompt
    images = unit_rows(images, "image embeddings")
    rng = np.random.default_rng(seed)
    others = min(candidates, len(first)) - 1
    values = np.empty(len(images))
    for rows in row_blocks(len(images), len(first)):
        cosines = images[rows] @ texts.T
        for row, (cosine, mine) in enumerate(zip(cosines, own[rows], strict=True), start=rows.start):
            generated = rng.choice(len(first) - 1, others, replace=False, shuffle=False)
            margin = cosine[generated + (generated >= mine)] - cosine[mine]  # numbers from the own one on move up by one
            values[row] = 0.0 if margin.max() > SAME else 1 / (1 + int((margin >= -SAME).sum()))
    return values


CLIP_R = Metric(
    name="clip_r",
    label="CLIP-R",
    explanation="Share of images whose own prompt fits best among 100.",
    compute=lambda inputs: retrieval_precision(
        inputs.image_embeddings, inputs.text_embeddings, inputs.prompts, seed=inputs.seed
    ),
    higher_is_better=True,
    needs=frozenset({Need.CLIP, Need.DIFFERENT_PROMPTS}),
    default="full",
    in_summary=False,
)
