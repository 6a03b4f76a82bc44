"""Residual generator and discriminator for small images, class-conditional or not.

Generator: Miyato et al. 2018 (SNGAN, table 3) with the conditional batch norms of Brock et al. 2019 (BigGAN, appendix B).
Discriminator: Miyato & Koyama 2018 (projection), every weight under spectral norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are linear in a condition (B, condition_dim) (Brock et al. 2019, appendix B)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Linear(condition_dim, channels), nn.Linear(condition_dim, channels)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.scale(condition)[:, :, None, None], self.shift(condition)[:, :, None, None]
        return self.norm(x) * (1 + scale) + shift


class UpBlock(nn.Module):
    """Twice the resolution, by two 3x3 convolutions after norms, and a 1x1 convolution beside them."""

    def __init__(self, channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            ConditionalBatchNorm(channels, condition_dim),
            ConditionalBatchNorm(out_channels, condition_dim),
        )
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, condition)), scale_factor=2.0)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), condition)))
        return h + F.interpolate(self.skip(x), scale_factor=2.0)  # a 1x1 convolution costs a quarter before it


class ResNetGenerator(ModelMixin, ConfigMixin):
    """Noise (B, latent_dim) and class numbers (B,) to images (B, out_channels, H, W) in [-1, 1].

    H = W = 4 * 2^(len(channels) - 1): each entry of `channels` after the first doubles the resolution from 4 pixels.

    Args:
        channels: at 4, 8, 16, ... pixels.
        num_classes: 0 for no classes; `labels` is then not taken.
        class_dim: of the embedding of a class, which every norm sees beside the noise.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 128,
        num_classes: int = 0,
        channels: Sequence[int] = (256, 256, 256, 256),
        class_dim: int = 64,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        condition_dim = latent_dim + (class_dim if num_classes else 0)
        self.classes = nn.Embedding(num_classes, class_dim) if num_classes else None
        self.start = nn.Linear(condition_dim, channels[0] * 16)
        self.blocks = nn.ModuleList([UpBlock(i, o, condition_dim) for i, o in pairwise(channels)])
        self.norm = nn.BatchNorm2d(channels[-1])
        self.out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = z if self.classes is None else torch.cat([z, self.classes(labels)], 1)
        x = self.start(condition).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, condition)
        return torch.tanh(self.out(F.relu(self.norm(x))))


class DownBlock(nn.Module):
    """Half the resolution where `down`, by two 3x3 convolutions, and a 1x1 convolution beside them."""

    def __init__(self, channels: int, out_channels: int, *, down: bool, first: bool = False) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = spectral_norm(nn.Conv2d(channels, out_channels, 1)) if down or channels != out_channels else None
        self.down, self.first = down, first

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h))
        skip = x if not self.down else F.avg_pool2d(x, 2)  # before the 1x1 convolution, which costs a quarter then
        skip = skip if self.skip is None else self.skip(skip)
        return (F.avg_pool2d(h, 2) if self.down else h) + skip


class ResNetDiscriminator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, H, W) and class numbers (B,) to logits (B,), large where real.

    logit = phi(x) . (embedding of the class) + psi(phi(x)) (Miyato & Koyama 2018, eq. 3).

    Args:
        resolution: H = W.
        channels: of the blocks; the first `num_down` of them halve the resolution.
        spread: whether psi also sees how different the images of a batch are, in fours that follow one another (minibatch
            standard deviation, Karras et al. 2018, section 3): then one image's logit depends on the next three.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 32,
        num_classes: int = 0,
        channels: Sequence[int] = (128, 128, 128, 128),
        num_down: int = 2,
        in_channels: int = 3,
        spread: bool = False,
    ) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.blocks = nn.ModuleList(
            [DownBlock(widths[k], widths[k + 1], down=k < num_down, first=k == 0) for k in range(len(channels))]
        )
        self.logit = spectral_norm(nn.Linear(channels[-1] + spread, 1))
        self.classes = spectral_norm(nn.Embedding(num_classes, channels[-1])) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        features = F.relu(x).sum((2, 3))
        seen = torch.cat([features, _spread(F.relu(x))], 1) if self.config["spread"] else features
        logit = self.logit(seen).squeeze(1)
        return logit if self.classes is None else logit + (self.classes(labels) * features).sum(1)


def _spread(x: Tensor, together: int = 4) -> Tensor:
    """(B, 1): the standard deviation over images that follow one another, averaged over channels and space."""
    together = next(size for size in (together, 2, 1) if len(x) % size == 0)
    variance = x.float().unflatten(0, (-1, together)).var(1, correction=0)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat_interleave(together)[:, None].to(x.dtype)
