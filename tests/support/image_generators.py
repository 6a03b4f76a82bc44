"""Image-to-image generators of the literature, small, written as their papers and their public code have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class DenseBlock(nn.Module):
    """ESRGAN's dense block: five convolutions, each reads all before it; in place activations, residual scaling."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, 3, 1, 1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, 1, 1)
        self.conv3 = nn.Conv2d(width + 2 * growth, growth, 3, 1, 1)
        self.conv4 = nn.Conv2d(width + 3 * growth, growth, 3, 1, 1)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """Images (B, 3, H, W) to (B, 3, scale H, scale W) (Wang et al. 2018, ESRGAN; 2021, Real-ESRGAN).

    Args:
        scale: below 4, the input is first unshuffled to fewer pixels (Real-ESRGAN).
        shuffle: upsample by pixel shuffle instead of nearest neighbours.
    """

    def __init__(self, num_blocks: int = 7, width: int = 16, growth: int = 8, scale: int = 4, shuffle: bool = False) -> None:
        super().__init__()
        self.scale, self.shuffle = scale, shuffle
        self.conv_first = nn.Conv2d(3 * (4 // scale) ** 2, width, 3, 1, 1)
        self.body = nn.Sequential(*[RRDB(width, growth) for _ in range(num_blocks)])
        self.conv_body = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(width, width * (4 if shuffle else 1), 3, 1, 1)
        self.conv_up2 = nn.Conv2d(width, width * (4 if shuffle else 1), 3, 1, 1)
        self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(F.pixel_unshuffle(x, 4 // self.scale) if self.scale < 4 else x)
        features = features + self.conv_body(self.body(features))
        for conv in (self.conv_up1, self.conv_up2):
            if self.shuffle:
                features = self.lrelu(F.pixel_shuffle(conv(features), 2))
            else:
                features = self.lrelu(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(features)))
