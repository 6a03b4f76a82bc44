"""Discriminator heads on the feature maps of a denoiser's blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.diffusion.blocks import blocks_of
from gendistill.diffusion.latent_discriminator import condition_embedding

WIDTH = 64  # channels within a head


def blocks_at(network: Any, depths: Sequence[float]) -> list[str]:
    """Names of the blocks at fractions of the network's depth, 1 is the last block; each block once."""
    names = list(blocks_of(network))
    return list(dict.fromkeys(names[max(math.ceil(depth * len(names)) - 1, 0)] for depth in depths))


class FeatureHeads(nn.Module):
    """A small discriminator of each of several feature maps, conditional on the prompt by projection.

    Latent adversarial diffusion distillation (Sauer et al. 2024) has such heads after the teacher's blocks; DMD2
    (Yin et al. 2024b, section 4.3) has one on the fake score's middle block.

    Args:
        shapes: shape (C, h, w) of each map, for any edges; maps of tokens (C, L, 1) are compared token by token.
        condition: an example of the conditions, the result of `condition_of`; None for heads without condition.
        num_classes: number of classes, for class labels.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, int]], condition: Tensor | None = None, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.names = list(shapes)
        self.heads = nn.ModuleList(_Head(channels, 3 if width > 1 else 1) for channels, _, width in shapes.values())
        self.condition_embedding = condition_embedding(condition, num_classes, WIDTH * len(shapes))

    def forward(self, maps: Mapping[str, Tensor], condition: Tensor | None = None) -> list[Tensor]:
        """Logits (B, 1, h, w) of each head, large for real samples.

        Args:
            maps: feature maps (B, C, h, w) by name of the block.
            condition: the result of `condition_of`.
        """
        embeddings: Sequence[Tensor | None] = [None] * len(self.names)
        if self.condition_embedding is not None and condition is not None:
            embeddings = self.condition_embedding(condition).chunk(len(self.names), dim=1)
        heads = zip(self.names, self.heads, embeddings, strict=True)
        return [head(maps[name], embedding) for name, head, embedding in heads]


class _Head(nn.Module):
    """Normalised features, a residual convolution, and one logit for each position (Miyato & Koyama 2018, equation 4)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, affine=False)  # one scale for all positions of a sample
        self.first = nn.Conv2d(channels, WIDTH, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, size, padding=size // 2)
        self.logit = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, features: Tensor, embedding: Tensor | None) -> Tensor:
        x = F.leaky_relu(self.first(self.norm(features.to(self.logit.weight.dtype))), 0.2)
        x = F.leaky_relu(x + self.second(x), 0.2)
        logits: Tensor = self.logit(x)
        return logits if embedding is None else logits + (embedding[:, :, None, None] * x).sum(1, keepdim=True)
