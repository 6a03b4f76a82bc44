"""The generator and discriminator of DCGAN (Radford et al. 2016, section 3): strided convolutions, batch norms, nothing else.

Classes are optional: an embedding beside the noise in the generator (Mirza & Osindero 2014), a projection in the discriminator
(Miyato & Koyama 2018, eq. 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


def initialise(layers: Iterable[nn.Module]) -> None:
    """Weights from N(0, 0.02), scales of norms from N(1, 0.02) (Radford et al. 2016, section 4)."""
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)


def smallest_edge(resolution: int, num_doublings: int) -> int:
    """Edge of the features that `num_doublings` doublings bring to `resolution`.

    Raises:
        ValueError: no whole number of pixels does.
    """
    edge, rest = divmod(resolution, 2**num_doublings)
    if rest or not edge:
        raise ValueError(f"resolution {resolution}: expects a multiple of {2**num_doublings} with {num_doublings} channels")
    return edge


class DCGANGenerator(ModelMixin, ConfigMixin):
    """Noise (B, latent_dim) and class numbers (B,) to images (B, out_channels, resolution, resolution) in [-1, 1].

    Args:
        num_classes: 0 for no classes; `labels` is then not taken.
        channels: from the coarsest features to the finest. Each is doubled in resolution, the last one into the image: the
            first has resolution / 2^len(channels) pixels, 4 in the paper (64 pixels), 7 for 28 pixels and two channels.
        class_dim: of the embedding of a class, which stands beside the noise.

    Raises:
        ValueError: a resolution that the channels cannot be doubled into.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 100,
        num_classes: int = 0,
        channels: Sequence[int] = (512, 256, 128, 64),
        out_channels: int = 3,
        resolution: int = 64,
        class_dim: int = 64,
    ) -> None:
        super().__init__()
        self.classes = nn.Embedding(num_classes, class_dim) if num_classes else None
        condition_dim = latent_dim + (class_dim if num_classes else 0)
        edge = smallest_edge(resolution, len(channels))
        self.start = nn.ConvTranspose2d(condition_dim, channels[0], edge, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in channels])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False) for i, o in pairwise(channels)])
        self.out = nn.ConvTranspose2d(channels[-1], out_channels, 4, 2, 1)
        initialise(self.modules())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = z if self.classes is None else torch.cat([z, self.classes(labels)], 1)
        x = self.start(condition[:, :, None, None])
        for norm, up in zip(self.norms, [*self.ups, self.out], strict=True):
            x = up(F.relu(norm(x)))
        return torch.tanh(x)


class DCGANDiscriminator(ModelMixin, ConfigMixin):
    """Images (B, in_channels, resolution, resolution) and class numbers (B,) to logits (B,), large where real.

    An image's logit depends, in training, on the batch that it is seen in (batch norms), so give it real images and made
    ones in batches of their own.

    Args:
        channels: from the finest features to the coarsest; each halves the resolution.

    Raises:
        ValueError: a resolution that cannot be halved once for each of the channels.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 64,
        num_classes: int = 0,
        channels: Sequence[int] = (64, 128, 256, 512),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        edge = smallest_edge(resolution, len(channels))
        self.first = nn.Conv2d(in_channels, channels[0], 4, 2, 1)
        self.downs = nn.ModuleList([nn.Conv2d(i, o, 4, 2, 1, bias=False) for i, o in pairwise(channels)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in channels[1:]])
        self.logit = nn.Conv2d(channels[-1], 1, edge)
        self.classes = nn.Embedding(num_classes, channels[-1]) if num_classes else None
        initialise(self.modules())

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        for down, norm in zip(self.downs, self.norms, strict=True):
            x = F.leaky_relu(norm(down(x)), 0.2)
        logit = self.logit(x).flatten()
        return logit if self.classes is None else logit + (self.classes(labels) * x.mean((2, 3))).sum(1)
