"""The generator (skip architecture) and discriminator (residual) of StyleGAN2 (Karras et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from gendistill.gan.architectures.stylegan2_layers import (
    SQRT2,
    Blur,
    EqualisedConv2d,
    EqualisedLinear,
    ModulatedConv,
    leaky_relu,
    unit,
)


class StyledConv(nn.Module):
    """A modulated convolution, noise, a bias and a leaky ReLU (Karras et al. 2020, fig. 2c).

    The noise is a buffer, so that a generator is a function of its inputs; with `random_noise` it is sampled anew each time.
    """

    noise: Tensor

    def __init__(
        self, channels: int, out_channels: int, style_dim: int, resolution: int, *, up: bool = False, random_noise: bool = False
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(channels, out_channels, 3, style_dim, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.strength = nn.Parameter(torch.zeros(1))
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))
        self.random_noise = random_noise

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.conv(x, w)
        noise = torch.randn_like(x[:, :1]) if self.random_noise else self.noise
        return leaky_relu(x + noise * self.strength + self.bias[:, None, None])


class ToImage(nn.Module):
    """Features (B, channels, H, W) to their part of the image, without demodulation (Karras et al. 2020, fig. 7b)."""

    def __init__(self, channels: int, out_channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(channels, out_channels, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias[:, None, None]


class Mapping(nn.Module):
    """Noise (B, latent_dim) and class numbers (B,) to w (B, latent_dim) (Karras et al. 2019, section 2)."""

    def __init__(self, latent_dim: int, num_classes: int, num_layers: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(num_classes, latent_dim) if num_classes else None
        widths = [latent_dim * (2 if num_classes else 1), *[latent_dim] * num_layers]
        self.layers = nn.ModuleList([EqualisedLinear(i, o, rate=0.01) for i, o in pairwise(widths)])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = unit(z) if self.classes is None else torch.cat([unit(z), unit(self.classes(labels))], 1)
        for layer in self.layers:
            x = leaky_relu(layer(x))
        return x


class Truncation(nn.BatchNorm1d):
    """In eval mode w (B, dim) is `psi` of the way from its mean in training (Karras et al. 2019, appendix B); 1 for none.

    Only the running mean of the batch norm is used. It is one so that whatever cuts channels cuts the mean with them.
    """

    def __init__(self, dim: int, psi: float) -> None:
        super().__init__(dim, momentum=0.005, affine=False)
        self.psi = psi

    def forward(self, w: Tensor) -> Tensor:
        if self.training and len(w) > 1:
            super().forward(w.detach())  # for the running mean alone
        mean = self.running_mean
        if self.training or self.psi == 1 or mean is None:
            return w
        return torch.lerp(mean.to(w.dtype), w, self.psi)


class StyleGAN2Generator(ModelMixin, ConfigMixin):
    """Noise (B, latent_dim) and class numbers (B,) to images (B, out_channels, H, W), about [-1, 1].

    H = W = 4 * 2^(len(channels) - 1), as in `ResNetGenerator`. As in the paper nothing bounds the image, which is a sum over
    resolutions: clamp it to [-1, 1] before it is looked at.

    Args:
        channels: at 4, 8, 16, ... pixels.
        num_classes: 0 for no classes; `labels` is then not taken.
        num_mapping: layers from z to w.
        random_noise: sampled anew in each call from torch's global generator, instead of saved with the weights.
        truncation_psi: see `Truncation`; `generator.truncation.psi` can be changed later.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 512,
        num_classes: int = 0,
        channels: Sequence[int] = (512, 512, 512, 512, 256),
        num_mapping: int = 8,
        out_channels: int = 3,
        random_noise: bool = False,
        truncation_psi: float = 1.0,
    ) -> None:
        super().__init__()
        self.mapping = Mapping(latent_dim, num_classes, num_mapping)
        self.truncation = Truncation(latent_dim, truncation_psi)
        self.start = nn.Parameter(torch.randn(4, 4, channels[0]))  # channels last: where a pruner looks for them
        self.first = StyledConv(channels[0], channels[0], latent_dim, 4, random_noise=random_noise)
        ups, convs = [], []
        for k, (i, o) in enumerate(pairwise(channels), start=1):
            ups.append(StyledConv(i, o, latent_dim, 4 * 2**k, up=True, random_noise=random_noise))
            convs.append(StyledConv(o, o, latent_dim, 4 * 2**k, random_noise=random_noise))
        self.ups, self.convs = nn.ModuleList(ups), nn.ModuleList(convs)
        self.images = nn.ModuleList([ToImage(width, out_channels, latent_dim) for width in channels])
        self.upsample = Blur("up")

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        w = self.truncation(self.mapping(z, labels))
        x = self.first(self.start.permute(2, 0, 1)[None], w)
        image = self.images[0](x, w)
        for up, conv, to_image in zip(self.ups, self.convs, list(self.images)[1:], strict=True):
            x = conv(up(x, w), w)
            image = self.upsample(image) + to_image(x, w)
        return image


class HalvingBlock(nn.Module):
    """Half the resolution, by two 3x3 convolutions and a 1x1 convolution beside them (Karras et al. 2020, fig. 7c)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualisedConv2d(channels, channels, 3, padding=1)
        self.blur = Blur(padding=2)
        self.conv2 = EqualisedConv2d(channels, out_channels, 3, stride=2)
        self.halve = Blur("down")
        self.skip = EqualisedConv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky_relu(self.conv2(self.blur(leaky_relu(self.conv1(x)))))
        return (h + self.skip(self.halve(x))) / SQRT2


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """x (B, C, H, W) with one more channel: the mean deviation within groups of images (Karras et al. 2018, section 3).

    Groups have `group` images, or the largest number below it that divides B: a single image deviates by nothing. Image k
    is in group k mod (number of groups).
    """
    size = max(size for size in range(1, group + 1) if len(x) % size == 0)
    groups = x.unflatten(0, (size, -1))
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


class StyleGAN2Discriminator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, resolution, resolution) and class numbers (B,) to logits (B,), large where real.

    Residual blocks, minibatch deviation, and for classes the projection of Miyato & Koyama 2018, eq. 3. An image's logit
    depends on the batch that it is seen in, so give it real images and made ones in batches of their own.

    Args:
        channels: at the full resolution, half of it, a quarter, ...; 4 pixels are usual for the last.
        group: images whose deviation is taken together.

    Raises:
        ValueError: a resolution that cannot be halved once for each of the channels after the first.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 64,
        num_classes: int = 0,
        channels: Sequence[int] = (256, 512, 512, 512, 512),
        in_channels: int = 3,
        group: int = 4,
    ) -> None:
        super().__init__()
        edge, rest = divmod(resolution, 2 ** (len(channels) - 1))
        if rest or not edge:
            raise ValueError(
                f"resolution {resolution}: expects a multiple of {2 ** (len(channels) - 1)} with {len(channels)} channels"
            )
        self.group = group
        self.first = EqualisedConv2d(in_channels, channels[0], 1)
        self.blocks = nn.ModuleList([HalvingBlock(i, o) for i, o in pairwise(channels)])
        self.last = EqualisedConv2d(channels[-1] + 1, channels[-1], 3, padding=1)
        self.features = EqualisedLinear(channels[-1] * edge**2, channels[-1])
        self.logit = EqualisedLinear(channels[-1], 1)
        self.classes = nn.Embedding(num_classes, channels[-1]) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = leaky_relu(self.first(x))
        for block in self.blocks:
            x = block(x)
        x = leaky_relu(self.last(minibatch_deviation(x, self.group)))
        x = leaky_relu(self.features(x.flatten(1)))
        logit = self.logit(x).squeeze(1)
        if self.classes is None:
            return logit
        return logit + (self.classes(labels) * x).sum(1) / math.sqrt(x.shape[1])
