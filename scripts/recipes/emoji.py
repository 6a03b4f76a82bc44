"""`assets/emoji` in memory: 23 MB of pictures, which every recipe reads again and again."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ASSETS = Path(__file__).parents[2] / "assets"
LEVELS = ("name", "subcategory", "category")


@dataclass(frozen=True)
class Emoji:
    pictures: torch.Tensor  # (N, 3, 32, 32) float in [-1, 1]
    captions: list[dict[str, str]]  # name, subcategory, category, vendor, unified

    def __len__(self) -> int:
        return len(self.captions)


def load_emoji(split: str, folder: Path = ASSETS / "emoji") -> Emoji:
    """All pictures of a split (`train` or `heldout`), in the order of the shards."""
    pictures, captions = [], []
    for shard in sorted(folder.glob(f"{split}-*.tar.gz")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                if member.name.endswith(".png"):
                    pictures.append(np.asarray(Image.open(io.BytesIO(file.read()))))
                elif member.name.endswith(".json"):
                    captions.append(json.load(file))
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return Emoji(stacked.contiguous().float() / 127.5 - 1, captions)
