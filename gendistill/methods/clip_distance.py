"""CLIP distance between the decoded images of two latents: the only term of alignment in image space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.methods.image_tower import ImageTower
from gendistill.metrics.distances.clip_score import ClipScorer
from gendistill.samplers.codec import Codec


class ClipDistance:
    """1 - cosine of the embeddings (Radford et al. 2021) of the decoded images.

    Args:
        codec: codec of the teacher; images are square.
        scorer: scorer with the image tower.
    """

    def __init__(self, codec: Codec, scorer: ClipScorer) -> None:
        self.codec, self.embed = codec, ImageTower.of_clip(scorer.model)

    @property
    def tower(self) -> torch.nn.Module:
        return self.embed.network

    def __call__(self, student_x0: Tensor, teacher_x0: Tensor) -> Tensor:
        """The distance between latents (B, C, h, w) each, a scalar in [0, 2]. Gradients flow to `student_x0`."""
        with torch.no_grad():
            target = self.embed(self.codec.decode(teacher_x0))
        return (1 - F.cosine_similarity(self.embed(self.codec.decode_unclamped(student_x0)), target)).mean()
