"""How far what two latents show is apart, to CLIP: the only term of alignment that looks at pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.metrics.distances.clip_score import ClipScorer
from gendistill.samplers.codec import Codec


class ClipDistance:
    """1 - cosine of the embeddings (Radford et al. 2021) of the decoded pictures.

    Args:
        codec: of the teacher; pictures are square.
        scorer: whose image tower it is. Pictures come to its size by a resize that gradients pass, bicubic like its own.
    """

    def __init__(self, codec: Codec, scorer: ClipScorer) -> None:
        import open_clip  # of an extra, and seconds to import

        self.codec, self.tower = codec, scorer.model.visual
        settings = open_clip.get_model_preprocess_cfg(scorer.model)
        size = settings["size"]
        self.size: int = size if isinstance(size, int) else size[0]
        self.mean, self.deviation = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Latents (B, C, h, w), both; a scalar in [0, 2]. Gradients flow to `ours`."""
        with torch.no_grad():
            target = self.embed(self.codec.decode(theirs))
        return (1 - F.cosine_similarity(self.embed(self.codec.painted(ours)), target)).mean()

    def embed(self, pictures: Tensor) -> Tensor:
        """Embeddings (B, E) of pictures (B, 3, H, W) in [-1, 1]."""
        if pictures.shape[2:] != (self.size, self.size):
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bicubic", antialias=True)
        prepared = ((pictures + 1) / 2 - self.mean.to(pictures)) / self.deviation.to(pictures)
        embedded: Tensor = self.tower(prepared)
        return embedded.float()
