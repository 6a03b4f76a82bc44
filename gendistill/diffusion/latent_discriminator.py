"""A conditional discriminator of latents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.samplers.conditioning import Conditioning

SMALLEST, WIDEST = 4, 128  # edge of the last feature maps; largest number of channels


def condition_of(conditioning: Conditioning) -> Tensor | None:
    """The condition of each sample: pooled prompt or mean of its token embeddings (B, D), or classes (B,) int64; else None."""
    if "pooled_embeds" in conditioning:
        return conditioning["pooled_embeds"].float()
    if "prompt_embeds" in conditioning:
        return conditioning["prompt_embeds"].float().mean(1)
    return conditioning.get("class_labels")


def number_of_classes(config: Any) -> int:
    """Number of class labels by a network's config, with that of the empty prompt; 0 without classes."""
    known = config.get("num_embeds_ada_norm")  # of DiT, whose last embedding is that of the empty prompt
    count: int = config.get("num_class_embeds") or (known + 1 if known else 0)
    return count


class LatentDiscriminator(nn.Module):
    """A projection discriminator (Miyato & Koyama 2018, eq. 4) with one logit per position of its last feature maps.

    It has no normalisation layers.

    Args:
        shape: shape of the latents, (C, h, w), or (C,) for points.
        example: conditions of a batch of any size; None for an unconditional discriminator.
        num_classes: number of classes, for class labels.
        width: channels of the first feature maps, doubled with every halving of the edges.
    """

    def __init__(
        self, shape: tuple[int, ...], example: Conditioning | None = None, num_classes: int = 0, width: int = 64
    ) -> None:
        super().__init__()
        edge = min(shape[1:], default=1)
        size = 3 if edge > 1 else 1
        self.first = _conv(shape[0] + 1, width, size)
        blocks = [_Block(width, width, size)]
        while edge > SMALLEST:
            wider, edge = min(2 * width, WIDEST), (edge + 1) // 2
            blocks.append(_Block(width, wider, size, down=True))
            width = wider
        self.blocks = nn.Sequential(*blocks, _Block(width, width, size))
        self.logit = nn.Conv2d(width, 1, 1)
        self.condition_embedding = condition_embedding(None if example is None else condition_of(example), num_classes, width)

    def forward(self, x_t: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, 1, h', w'), large for latents of the teacher.

        Args:
            x_t: noisy latents (B, C, h, w) or (B, C).
            log_snr: log signal-to-noise ratio (B,) of x_t.
            condition: the result of `condition_of`.
        """
        x = x_t.reshape(*x_t.shape, *[1] * (4 - x_t.ndim))
        noise_level = (log_snr / 4).to(x)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        features = F.leaky_relu(self.blocks(self.first(torch.cat([x, noise_level], 1))), 0.2)
        logits: Tensor = self.logit(features)
        if self.condition_embedding is None or condition is None:
            return logits
        embedding = self.condition_embedding(condition)[:, :, None, None]
        return logits + (embedding * features).sum(1, keepdim=True)


class _Block(nn.Module):
    """A residual block of two convolutions with a 1x1 shortcut; halves the edges where `down`."""

    def __init__(self, channels: int, out_channels: int, size: int, *, down: bool = False) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, out_channels, size), _conv(out_channels, out_channels, size)
        self.shortcut, self.down = _conv(channels, out_channels, 1), down

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        residual: Tensor = self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))
        return residual + self.shortcut(x)


def _conv(channels: int, out_channels: int, size: int) -> nn.Module:
    return nn.Conv2d(channels, out_channels, size, padding=size // 2)


def condition_embedding(example: Tensor | None, num_classes: int, width: int) -> nn.Module | None:
    """A trained module from conditions such as `example` to vectors (B, width); None without conditions."""
    if example is None:
        return None
    if not example.is_floating_point():
        return nn.Embedding(num_classes, width)
    return nn.Sequential(nn.LayerNorm(example.shape[1], elementwise_affine=False), nn.Linear(example.shape[1], width))
