"""Generators of Karras et al., small: PGGAN with bare weights and with hooks, StyleGAN2 with grouped convolutions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EqualizedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, lr_mul: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs) / lr_mul), nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.lr_mul = lr_mul / math.sqrt(inputs), lr_mul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class EqualizedConv2d(nn.Module):
    """A bare weight, scaled at every call (Karras et al. 2018, PGGAN, equalized learning rate)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel)), nn.Parameter(torch.zeros(outputs))
        self.scale, self.padding = math.sqrt(2 / (inputs * kernel**2)), padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualLR:
    """Equalized learning rate as a hook that computes the layer's weight before each call."""

    name = "weight"

    def __call__(self, layer: nn.Module, _inputs: Any) -> None:
        weight = layer.weight_orig
        layer.weight = weight * math.sqrt(2 / (weight.shape[1] * weight[0][0].numel()))

    @classmethod
    def apply(cls, layer: Any) -> Any:
        weight = layer.weight
        del layer._parameters["weight"]
        layer.register_parameter("weight_orig", nn.Parameter(weight.data))
        layer.register_forward_pre_hook(cls())
        return layer


class HookedPGGAN(nn.Module):
    """Noise (B, latent_dim) to images (B, 3, 8, 8); PGGAN with the hook instead of layers of its own."""

    def __init__(self, latent_dim: int = 32, width: int = 32) -> None:
        super().__init__()
        self.start = EqualLR.apply(nn.ConvTranspose2d(latent_dim, width, 4))
        self.conv1, self.conv2 = (EqualLR.apply(nn.Conv2d(width, width, 3, padding=1)) for _ in range(2))
        self.to_rgb, self.norm = EqualLR.apply(nn.Conv2d(width, 3, 1)), PixelNorm()

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(F.leaky_relu(self.conv1(self.start(z[:, :, None, None])), 0.2))
        return self.to_rgb(self.norm(F.leaky_relu(self.conv2(F.interpolate(x, scale_factor=2)), 0.2)))


class PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class PGGAN(nn.Module):
    """Noise (B, latent_dim) to images (B, 3, 16, 16) (Karras et al. 2018)."""

    def __init__(self, latent_dim: int = 32, widths: tuple[int, ...] = (32, 32, 16)) -> None:
        super().__init__()
        self.norm, self.first = PixelNorm(), EqualizedLinear(latent_dim, widths[0] * 16)
        self.blocks = nn.ModuleList()
        for k, width in enumerate(widths):
            inputs = widths[max(k - 1, 0)]
            self.blocks.append(nn.ModuleList([EqualizedConv2d(inputs, width, 3, 1)]))
            if k:
                self.blocks[-1].append(EqualizedConv2d(width, width, 3, 1))
        self.to_rgb = EqualizedConv2d(widths[-1], 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(self.norm(z))
        x = self.norm(F.leaky_relu(x.view(x.shape[0], -1, 4, 4), 0.2))
        for k, convs in enumerate(self.blocks):
            if k:
                x = F.interpolate(x, scale_factor=2)
            for conv in convs:
                x = self.norm(F.leaky_relu(conv(x), 0.2))
        return self.to_rgb(x)


class ModulatedConv2d(nn.Module):
    """StyleGAN2's modulated convolution (Karras et al. 2020) as one convolution with a group for each sample of the batch."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style_dim: int, demodulate: bool = True, upsample: bool = False
    ) -> None:
        super().__init__()
        self.out_channel, self.in_channel, self.kernel_size = outputs, inputs, kernel
        self.demodulate, self.upsample = demodulate, upsample
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2
        self.register_buffer("blur", torch.tensor([1.0, 3, 3, 1])[:, None] * torch.tensor([1.0, 3, 3, 1]) / 16)
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualizedLinear(style_dim, inputs, bias=1.0)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, in_channel, height, width = x.shape
        style = self.modulation(style).view(batch, 1, in_channel, 1, 1)
        weight = self.scale * self.weight * style
        if self.demodulate:
            demod = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
            weight = weight * demod.view(batch, self.out_channel, 1, 1, 1)
        x = x.view(1, batch * in_channel, height, width)
        if self.upsample:
            weight = weight.transpose(1, 2).reshape(batch * in_channel, self.out_channel, self.kernel_size, self.kernel_size)
            out = F.conv_transpose2d(x, weight, padding=0, stride=2, groups=batch)
            out = F.pad(out.reshape(-1, 1, *out.shape[2:]), [1, 1, 1, 1])  # as upfirdn2d blurs each channel
            out = F.conv2d(out, self.blur[None, None])
        else:
            weight = weight.view(batch * self.out_channel, in_channel, self.kernel_size, self.kernel_size)
            out = F.conv2d(x, weight, padding=self.padding, groups=batch)
        return out.view(batch, self.out_channel, *out.shape[2:])


class StyledConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, style_dim: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, upsample=upsample)
        self.noise, self.bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, outputs, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.conv(x, style)
        noise = torch.ones_like(x[:, :1])
        return F.leaky_relu(x + self.noise * noise + self.bias, 0.2) * math.sqrt(2)


class ToRGB(nn.Module):
    def __init__(self, inputs: int, style_dim: int) -> None:
        super().__init__()
        self.conv, self.bias = ModulatedConv2d(inputs, 3, 1, style_dim, demodulate=False), nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        out = self.conv(x, style) + self.bias
        return out if skip is None else out + F.interpolate(skip, scale_factor=2, mode="bilinear")


class GroupedStyleGAN2(nn.Module):
    """Noise (B, style_dim) to images (B, 3, 16, 16), as in the public PyTorch port of StyleGAN2."""

    def __init__(self, style_dim: int = 32, widths: tuple[int, ...] = (32, 32, 16)) -> None:
        super().__init__()
        layers: list[nn.Module] = [PixelNorm()]
        for _ in range(2):
            layers += [EqualizedLinear(style_dim, style_dim, 0.01), nn.LeakyReLU(0.2)]
        self.style, self.input = nn.Sequential(*layers), nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.conv1, self.to_rgb1 = StyledConv(widths[0], widths[0], style_dim), ToRGB(widths[0], style_dim)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in itertools.pairwise(widths):
            self.convs.extend([StyledConv(inputs, outputs, style_dim, True), StyledConv(outputs, outputs, style_dim)])
            self.to_rgbs.append(ToRGB(outputs, style_dim))

    def forward(self, z: Tensor) -> Tensor:
        w = self.style(z)
        x = self.conv1(self.input.repeat(z.shape[0], 1, 1, 1), w)
        skip = self.to_rgb1(x, w)
        for first, second, to_rgb in zip(self.convs[::2], self.convs[1::2], self.to_rgbs, strict=True):
            x = second(first(x, w), w)
            skip = to_rgb(x, w, skip)
        return skip
