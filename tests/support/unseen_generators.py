"""Three generators that are registered nowhere, as source text that tests write to a module of their own.

Each has `SOURCE` text, a class, arguments, and the inputs of one call.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

UNET = '''
import torch
from torch import nn


class Double(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x):
        return self.layers(x)


class SkipUNet(nn.Module):
    """Images (B, 3, H, W) to images (B, 3, H, W); H and W are multiples of 4."""

    def __init__(self, width=24, colours=3):
        super().__init__()
        self.down1, self.down2, self.middle = Double(colours, width), Double(width, 2 * width), Double(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = (nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2),
                              nn.ConvTranspose2d(2 * width, width, 2, stride=2))
        self.join2, self.join1 = Double(4 * width, 2 * width), Double(2 * width, width)
        self.last = nn.Conv2d(width + colours, colours, 1)

    def forward(self, image):
        one = self.down1(image)
        two = self.down2(self.pool(one))
        h = self.middle(self.pool(two))
        h = self.join2(torch.cat([self.up2(h), two], dim=1))
        h = self.join1(torch.cat([one, self.up1(h)], dim=1))
        return torch.tanh(self.last(torch.cat([image, h], dim=1)))
'''

UPSAMPLER = '''
import torch
import torch.nn.functional as F
from torch import nn


class Up(nn.Module):
    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class GroupNormUpsampler(nn.Module):
    """Noise (B, latent) to images (B, 3, 32, 32)."""

    def __init__(self, latent=64, channels=64, groups=8):
        super().__init__()
        self.channels = channels
        self.start = nn.Sequential(nn.Linear(latent, 128), nn.SiLU(), nn.Linear(128, channels * 16))
        self.blocks = nn.Sequential(Up(channels, channels, groups), Up(channels, channels // 2, groups),
                                    Up(channels // 2, channels // 4, groups))
        self.norm = nn.GroupNorm(groups, channels // 4)
        self.generate = nn.Conv2d(channels // 4, 3, 3, padding=1)

    def forward(self, noise):
        x = self.start(noise).view(noise.shape[0], self.channels, 4, 4)
        return torch.tanh(self.generate(F.silu(self.norm(self.blocks(x)))))
'''

SUPER_RESOLVER = '''
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.PReLU(width)

    def forward(self, x):
        return x + 0.1 * self.two(self.act(self.one(x)))


class ShuffleSuperResolver(nn.Module):
    """Images (B, 3, H, W) to images (B, 3, 4 H, 4 W)."""

    def __init__(self, width=24, blocks=3):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList([Residual(width) for _ in range(blocks)])
        self.grow1 = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.grow2 = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(inplace=True))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, small):
        features = first = self.head(small)
        for block in self.body:
            features = block(features)
        features = self.grow2(F.relu(F.pixel_shuffle(self.grow1(features + first), 2)))
        return self.tail(features) + F.interpolate(small, scale_factor=4.0, mode="bilinear", align_corners=False)
'''


@dataclass(frozen=True)
class Unseen:
    """A generator as its user has it: source, class, arguments, and the shapes of what forward takes and gives (no batch)."""

    module: str
    source: str
    class_name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """`folder/<module>.py`."""
        path = folder / f"{self.module}.py"
        path.write_text(self.source)
        return path

    def build(self, folder: Path, seed: int = 0) -> nn.Module:
        """Write the source and build the class from it, with weights of `seed`."""
        spec = importlib.util.spec_from_file_location(f"unseen_{self.module}", self.write(folder))
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        torch.manual_seed(seed)
        return getattr(module, self.class_name)(**self.arguments)

    def inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor]:
        """Normal numbers (batch, *input_shape)."""
        return (torch.randn(batch, *self.input_shape, generator=torch.Generator().manual_seed(seed)),)


UNSEEN = (
    Unseen("skip_unet", UNET, "SkipUNet", (3, 32, 32), (3, 32, 32), {"width": 16}),
    Unseen("group_norm_upsampler", UPSAMPLER, "GroupNormUpsampler", (64,), (3, 32, 32)),
    Unseen("shuffle_super_resolver", SUPER_RESOLVER, "ShuffleSuperResolver", (3, 16, 16), (3, 64, 64), {"width": 16}),
)
