"""Image to image: the generator of CycleGAN (Zhu et al. 2017) and the discriminator of pix2pix (Isola et al. 2017)."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class ResnetBlock(nn.Module):
    """x + two 3x3 convolutions with instance norms, reflected at the border."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm1, self.norm2 = nn.InstanceNorm2d(channels), nn.InstanceNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class ResNetTranslator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, H, W) in [-1, 1] to images (B, out_channels, H, W) in [-1, 1].

    Zhu et al. 2017, appendix 7.2 (after Johnson et al. 2016): c7s1-64, d128, d256, n residual blocks, u128, u64, c7s1-3. No
    classes: `labels` is there so that all generators are called alike, and is not looked at.

    Args:
        channels: at the full resolution; doubled where the resolution is halved.
        num_blocks: residual blocks at the coarsest resolution: 6 up to 128 pixels and 9 from 256 in the paper.
        num_down: H and W are multiples of 2^num_down (and at least twice that).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 64,
        num_blocks: int = 9,
        num_down: int = 2,
    ) -> None:
        super().__init__()
        self.step = 2**num_down
        layers: list[nn.Module] = []

        def add(conv: nn.Module, width: int) -> None:
            layers.extend([conv, nn.InstanceNorm2d(width), nn.ReLU()])

        width = channels
        add(nn.Conv2d(in_channels, width, 7, padding=3, padding_mode="reflect"), width)
        for _ in range(num_down):
            add(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width)
            width *= 2
        layers += [ResnetBlock(width) for _ in range(num_blocks)]
        for _ in range(num_down):
            add(nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1), width // 2)
            width //= 2
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(channels, out_channels, 7, padding=3, padding_mode="reflect")

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raises:
        ValueError: H or W is not a multiple of 2^num_down.
        """
        height, width = x.shape[2:]
        if height % self.step or width % self.step:
            raise ValueError(f"an image of {height} x {width}: expects multiples of {self.step}")
        return torch.tanh(self.out(self.layers(x)))


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, H, W) to a map of logits (B, 1, h, w), each about a patch, large where real.

    Isola et al. 2017, appendix 6.1.2: C64-C128-C256-C512 and one logit, by 4x4 convolutions. With 3 strided layers a logit sees
    70 x 70 pixels and a map is H/8 - 2 high; with 0, 1, 2 a logit sees 7, 16, 34 pixels.

    Args:
        num_classes: 0 for no classes, otherwise each place of the map has the projection of Miyato & Koyama 2018, eq. 3.
        condition_channels: of the image that `condition` is; 0 for none. It is concatenated to the image.
        channels: of the first layer; doubled by each layer up to eight times as many.
        num_layers: strided ones. H and W are at least 3 * 2^num_layers.
        norm: instance norms except at the first layer and the last; the spectral norm does without them.
        spectral: every weight under spectral norm (Miyato et al. 2018).
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 0,
        condition_channels: int = 0,
        channels: int = 64,
        num_layers: int = 3,
        norm: bool = True,
        spectral: bool = False,
    ) -> None:
        super().__init__()

        def normed(layer: nn.Module) -> nn.Module:
            return spectral_norm(layer) if spectral else layer

        layers: list[nn.Module] = []
        width = in_channels + condition_channels
        for k in range(num_layers + 1):
            wider = channels * min(2**k, 8)
            layers.append(normed(nn.Conv2d(width, wider, 4, 2 if k < num_layers else 1, 1)))
            if norm and k:
                layers.append(nn.InstanceNorm2d(wider))
            layers.append(nn.LeakyReLU(0.2))
            width = wider
        self.layers = nn.Sequential(*layers)
        self.logit = normed(nn.Conv2d(width, 1, 4, 1, 1))
        # The features that the classes are projected on lie where the logits lie: each is the mean of a logit's 4x4 features.
        self.pool = nn.AvgPool2d(4, 1, 1)
        self.classes = normed(nn.Embedding(num_classes, width)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        x = x if condition is None else torch.cat([x, condition], 1)
        features = self.layers(x)
        logits = self.logit(features)
        if self.classes is None:
            return logits
        return logits + (self.classes(labels)[:, :, None, None] * self.pool(features)).sum(1, keepdim=True)
