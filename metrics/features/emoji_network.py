"""The small classifier whose pooled layer replaces Inception-v3: 32x32 images to 128 features (`fd-emoji`)."""

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

GROUPS = 8


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut, pre-activation (He et al. 2016b); no batch statistics."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.norm1(x))
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return self.shortcut(x) + residual


class EmojiFeatureNetwork(nn.Module):
    """A pre-activation ResNet for 32x32 images with three heads: category, vendor, and the words of the name.

    The lists are the heads' classes in order; they are saved in `config.json` next to the weights.
    """

    def __init__(self, channels: list[int], categories: list[str], vendors: list[str], words: list[str]) -> None:
        super().__init__()
        self.channels, self.categories, self.vendors, self.words = channels, categories, vendors, words
        self.stem = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        for channels_in, channels_out in itertools.pairwise(channels):
            blocks += [ResidualBlock(channels_in, channels_out, 2), ResidualBlock(channels_out, channels_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(GROUPS, channels[-1])
        self.category = nn.Linear(channels[-1], len(categories))
        self.vendor = nn.Linear(channels[-1], len(vendors))
        self.word = nn.Linear(channels[-1], len(words))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The pooled layer (B, channels[-1]), nonnegative, for `images` (B, 3, 32, 32) in [-1, 1]."""
        return F.relu(self.norm(self.blocks(self.stem(images)))).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the categories (B, C), of the vendors (B, V) and of the words (B, W)."""
        pooled = self.features(images)
        return self.category(pooled), self.vendor(pooled), self.word(pooled)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (float16: the model card's scores are for the rounded weights)."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "channels": self.channels,
            "categories": self.categories,
            "vendors": self.vendors,
            "words": self.words,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        weights = {name: weight.half().contiguous() for name, weight in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "EmojiFeatureNetwork":
        """Load the network that `save` wrote, in float32 and in evaluation mode.

        Raises:
            FileNotFoundError: the folder lacks `config.json` or `model.safetensors`.
        """
        network = cls(**json.loads((folder / "config.json").read_text()))
        network.load_state_dict({k: w.float() for k, w in load_file(folder / "model.safetensors").items()})
        return network.eval().requires_grad_(False)
