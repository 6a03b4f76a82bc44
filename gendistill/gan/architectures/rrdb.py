"""The super-resolution generator of ESRGAN (Wang et al. 2018, section 3.1): residual-in-residual dense blocks (RRDB)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

RESIDUAL_SCALE = 0.2  # beta of figure 4


class DenseBlock(nn.Module):
    """Five densely connected convolutions, scaled and added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * 4 + [channels]
        convs = [nn.Conv2d(channels + k * growth, width, 3, padding=1) for k, width in enumerate(widths)]
        self.convs = nn.ModuleList(convs)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)  # "smaller initialization", section 3.1
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs[:-1]:
            features.append(F.leaky_relu(conv(torch.cat(features, 1)), 0.2))
        return x + RESIDUAL_SCALE * self.convs[-1](torch.cat(features, 1))


class RRDB(nn.Module):
    """Three dense blocks, scaled and added to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.blocks(x)


class RRDBGenerator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, H, W) in [-1, 1] to images (B, out_channels, 4 H, 4 W), which are not clamped.

    The network is unconditional; `labels` is ignored and exists for the common signature of generators.

    Args:
        channels: of the feature maps: 64 in the paper.
        growth: channels that each convolution of a dense block adds: 32 in the paper.
        num_blocks: RRDBs: 23 in the paper.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, channels: int = 64, growth: int = 32, num_blocks: int = 23
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(channels, growth) for _ in range(num_blocks)))
        self.trunk = nn.Conv2d(channels, channels, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.high = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.first(x)
        x = x + self.trunk(self.body(x))
        for up in self.ups:
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.out(F.leaky_relu(self.high(x), 0.2))
