"""Where training data comes from: a folder of pictures, WebDataset shards, or prompts alone.

A source can be walked again and again, always in the same order, and holds one sample in memory at a time.
"""

import os
from pathlib import Path

from gendistill.data.captions import CaptionOption
from gendistill.data.folder import ImageFolder, files_below, is_picture
from gendistill.data.pictures import to_tensor
from gendistill.data.prompts import Prompts
from gendistill.data.samples import PictureSource, Sample
from gendistill.data.shards import WebDatasetShards, is_shard

__all__ = ["ImageFolder", "PictureSource", "Prompts", "Sample", "WebDatasetShards", "open_source", "to_tensor"]


def open_source(path: str | Path, caption: CaptionOption = None, seed: int = 0) -> ImageFolder | WebDatasetShards | Prompts:
    """Open whatever `path` is.

    Args:
        path: a folder of pictures, a folder of WebDataset shards, a shard, a pattern of shards, or a `.txt` of prompts.
        caption: which text is the caption, for pictures; see `ImageFolder` and `WebDatasetShards`.
        seed: of the draw among several caption fields.

    Raises:
        ValueError: there is nothing at `path`, or nothing that can be trained on.
    """
    here = Path(path).expanduser()
    if here.is_dir():
        names = list(files_below(here))
        shards, pictures = any(map(is_shard, os.listdir(here))), any(map(is_picture, names))
        if shards and pictures:
            raise ValueError(f"data: {str(path)!r} holds both shards and pictures; it takes a pattern such as '*.tar'.")
        if not shards and not pictures:
            raise ValueError(f"data: {str(path)!r} holds no picture and no shard; it takes a folder with either.")
        return WebDatasetShards(here, caption, seed) if shards else ImageFolder(here, caption, seed)
    if here.suffix.lower() == ".txt" and here.is_file():
        return Prompts(here)
    return WebDatasetShards(here, caption, seed)
