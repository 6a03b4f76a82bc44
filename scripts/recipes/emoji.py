"""`assets/emoji` in memory: 23 MB of images, which every recipe reads again and again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendistill.data.sources.shards import WebDatasetShards

ASSETS = Path(__file__).parents[2] / "assets"
LEVELS = ("name", "subcategory", "category")


@dataclass(frozen=True)
class Emoji:
    images: torch.Tensor  # (N, 3, 32, 32) float in [-1, 1]
    captions: list[dict[str, str]]  # name, subcategory, category, vendor, unified

    def __len__(self) -> int:
        return len(self.captions)


def load_emoji(split: str, folder: Path = ASSETS / "emoji") -> Emoji:
    """All images of a split (`train` or `heldout`), in the order of the shards."""
    entries = list(WebDatasetShards(folder / f"{split}-*.tar.gz").entries())
    stacked = torch.from_numpy(np.stack([np.asarray(Image.open(entry.file)) for entry in entries])).permute(0, 3, 1, 2)
    return Emoji(stacked.contiguous().float() / 127.5 - 1, [entry.texts for entry in entries])
