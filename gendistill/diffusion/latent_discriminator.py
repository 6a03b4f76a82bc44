"""A discriminator of latents, under the condition that they were generated for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.samplers.conditioning import Conditioning

SMALLEST, WIDEST = 4, 128  # latents along an edge of the last maps; their channels


def condition_of(conditioning: Conditioning) -> Tensor | None:
    """What images of one group have in common: pooled prompts or the means of their tokens (B, D), or classes (B,) int64."""
    if "pooled_embeds" in conditioning:
        return conditioning["pooled_embeds"].float()
    if "prompt_embeds" in conditioning:
        return conditioning["prompt_embeds"].float().mean(1)
    return conditioning.get("class_labels")


class LatentDiscriminator(nn.Module):
    """A projection discriminator (Miyato & Koyama 2018, eq. 4), with one logit a place of its last maps and without norms.

    Args:
        shape: of the latents (C, h, w); of points (C,).
        example: conditions as it will see them, a batch of any size; without any it evaluators the latents alone.
        num_classes: of class labels.
        width: channels of the first maps, doubled with every halving of the edges.
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
        self.of_condition = _embedding(None if example is None else condition_of(example), num_classes, width)

    def forward(self, x_t: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, 1, h', w'), large where it thinks the teacher's.

        Args:
            x_t: latents (B, C, h, w) or (B, C), with noise.
            log_snr: (B,), of how much.
            condition: as `condition_of` gives it.
        """
        x = x_t.reshape(*x_t.shape, *[1] * (4 - x_t.ndim))
        level = (log_snr / 4).to(x)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        seen = F.leaky_relu(self.blocks(self.first(torch.cat([x, level], 1))), 0.2)
        logits: Tensor = self.logit(seen)
        if self.of_condition is None or condition is None:
            return logits
        asked = self.of_condition(condition)[:, :, None, None]
        return logits + (asked * seen).sum(1, keepdim=True)


class _Block(nn.Module):
    """Two convolutions, and a third beside them; half the edges where `down`."""

    def __init__(self, channels: int, wider: int, size: int, *, down: bool = False) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, wider, size), _conv(wider, wider, size)
        self.beside, self.down = _conv(channels, wider, 1), down

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        seen: Tensor = self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))
        return seen + self.beside(x)


def _conv(channels: int, wider: int, size: int) -> nn.Module:
    return nn.Conv2d(channels, wider, size, padding=size // 2)


def _embedding(example: Tensor | None, num_classes: int, width: int) -> nn.Module | None:
    if example is None:
        return None
    if not example.is_floating_point():
        return nn.Embedding(num_classes, width)
    return nn.Sequential(nn.LayerNorm(example.shape[1], elementwise_affine=False), nn.Linear(example.shape[1], width))
