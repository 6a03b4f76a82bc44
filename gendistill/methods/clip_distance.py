"""CLIP distance between the decoded images of two latents: the only term of alignment in image space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.metrics.distances.clip_score import ClipScorer
from gendistill.samplers.codec import Codec


class ClipDistance:
    """1 - cosine of the embeddings (Radford et al. 2021) of the decoded images.

    Args:
        codec: codec of the teacher; images are square.
        scorer: scorer with the image tower. Images are resized to its input by a differentiable bicubic resize.
    """

    def __init__(self, codec: Codec, scorer: ClipScorer) -> None:
        import open_clip  # from an extra; takes seconds to import

        self.codec, self.tower = codec, scorer.model.visual
        settings = open_clip.get_model_preprocess_cfg(scorer.model)
        size = settings["size"]
        self.size: int = size if isinstance(size, int) else size[0]
        self.mean, self.deviation = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))

    def __call__(self, student_x0: Tensor, teacher_x0: Tensor) -> Tensor:
        """The distance between latents (B, C, h, w) each, a scalar in [0, 2]. Gradients flow to `student_x0`."""
        with torch.no_grad():
            target = self.embed(self.codec.decode(teacher_x0))
        return (1 - F.cosine_similarity(self.embed(self.codec.decode_unclamped(student_x0)), target)).mean()

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) of images (B, 3, H, W) in [-1, 1]."""
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        prepared = ((images + 1) / 2 - self.mean.to(images)) / self.deviation.to(images)
        embedded: Tensor = self.tower(prepared)
        return embedded.float()
