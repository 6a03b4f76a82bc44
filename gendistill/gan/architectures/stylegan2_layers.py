"""The layers of StyleGAN2 (Karras et al. 2020), of ordinary operations that tracers and exporters follow.

A modulated convolution is written as: scale the features by the style, convolve them with the weight that all images share,
scale what comes out by the demodulation factor. That equals the paper's eq. 1-3, which give each image weights of its own and
need a grouped convolution. The layers are `nn.Linear`, `nn.Conv2d` and `nn.ConvTranspose2d`, whose equalised learning rate
(Karras et al. 2018, section 4.1) scales what goes in, so that their weights are seen as they are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2)


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times sqrt(2) so that the variance stays about 1."""
    return F.leaky_relu(x, 0.2) * SQRT2


def unit(x: Tensor) -> Tensor:
    """x (B, dim) over its root mean square (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class EqualisedLinear(nn.Linear):
    """y = r (W x / sqrt(fan-in) + b), W from N(0, 1 / r^2), for a learning rate r times the others' (Karras et al. 2018, 4.1).

    The scale is a buffer: a layer with fewer inputs than it began with (pruned) keeps its scale when it is saved and loaded.
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        nn.init.normal_(self.weight, std=1 / rate)
        nn.init.constant_(self.bias, bias / rate)
        self.rate = rate
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(in_features)))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x * self.scale)
        return y if self.rate == 1 else y * self.rate


class EqualisedConv2d(nn.Conv2d):
    """A convolution of W / sqrt(fan-in), W from N(0, 1) (Karras et al. 2018, section 4.1)."""

    scale: Tensor

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(channels, out_channels, kernel, stride, padding, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(channels * kernel**2)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Blur(nn.Module):
    """The filter [1, 3, 3, 1] in both directions (Karras et al. 2020, appendix B): x (B, C, H, W).

    "up": zeros between the pixels first, H -> 2H; "down": every second pixel after, H -> H / 2; "same": H -> H + 2 padding - 3.
    """

    kernel: Tensor

    def __init__(self, mode: str = "same", padding: int = 1) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(line, line)[None, None] / 64, persistent=False)
        self.mode, self.padding = mode, padding

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        if self.mode == "up":  # a quarter of the pixels are not zero
            return F.conv_transpose2d(x, kernel * 4, stride=2, padding=self.padding, groups=channels)
        return F.conv2d(x, kernel, stride=2 if self.mode == "down" else 1, padding=self.padding, groups=channels)


class ModulatedConv(nn.Module):
    """Features x (B, channels, H, W) by weights that w (B, style_dim) scales (Karras et al. 2020, eq. 1-3); H -> 2H if `up`."""

    scale: Tensor

    def __init__(
        self, channels: int, out_channels: int, kernel: int, style_dim: int, *, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.style = EqualisedLinear(style_dim, channels, bias=1.0)
        self.conv = (
            nn.ConvTranspose2d(channels, out_channels, kernel, 2, bias=False)
            if up
            else nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        )
        nn.init.normal_(self.conv.weight)
        self.register_buffer("scale", torch.tensor(1 / math.sqrt(channels * kernel**2)))
        self.blur = Blur() if up else None
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w) * self.scale
        x = self.conv(x * style[:, :, None, None])
        if self.demodulate:
            x = x * self.demodulation(style)[:, :, None, None]
        return x if self.blur is None else self.blur(x) * 4  # zeros that a strided convolution puts between made it a quarter

    def demodulation(self, style: Tensor) -> Tensor:
        """Styles (B, channels) to 1 / sqrt(sum of (s w)^2 + 1e-8) (B, out_channels): eq. 3."""
        energy = self.conv.weight.square().sum((2, 3))
        energy = energy if isinstance(self.conv, nn.ConvTranspose2d) else energy.T
        return (style.square() @ energy + 1e-8).rsqrt()
