"""Where images come from: a folder or a zip of them, WebDataset shards, a `datasets` dataset; or prompts alone.

A source can be walked again and again, always in the same order, and holds one sample in memory at a time.
"""

import os
from pathlib import Path

from gendistill.assets import asset_path
from gendistill.data.samples import ImageSource, Sample
from gendistill.data.sources.captions import CaptionOption
from gendistill.data.sources.folder import ImageFolder, ZipImages, files_below, is_image_name
from gendistill.data.sources.prompts import Prompts
from gendistill.data.sources.shards import WebDatasetShards, is_shard

__all__ = ["ImageFolder", "ImageSource", "Prompts", "Sample", "WebDatasetShards", "ZipImages", "open_source"]


def open_source(
    path: str | Path,
    caption: CaptionOption = None,
    seed: int = 0,
    *,
    image_column: str | None = None,
    split: str | None = None,
) -> ImageSource | Prompts:
    """Open whatever `path` is.

    Args:
        path: a folder or a `.zip` of images, a folder of WebDataset shards, a shard (any tar of images is one), a
            pattern of shards, a `.txt` of prompts, or a dataset, see `DatasetImages`.
        caption: which text is the caption, for images; see `ImageFolder`, `ZipImages`, `WebDatasetShards` and
            `DatasetImages`.
        seed: of the sample among several caption fields.
        image_column, split: of a dataset.

    Raises:
        ValueError: there is nothing at `path`, or nothing that can be trained on.
    """
    path = asset_path(path)
    kind = _kind(path)
    if kind == "prompts":
        return Prompts(Path(path).expanduser())
    if kind == "dataset":
        from gendistill.data.sources.dataset import DatasetImages  # seconds to import, and most runs do without

        return DatasetImages(str(path), caption, seed, image_column, split)
    if image_column or split:
        raise ValueError(f"data.image_column and data.split: take a dataset; {str(path)!r} is none")
    here = Path(path).expanduser()
    if kind == "zip":
        return ZipImages(here, caption, seed)
    return ImageFolder(here, caption, seed) if kind == "images" else WebDatasetShards(here, caption, seed)


def _kind(path: str | Path) -> str:
    here = Path(path).expanduser()
    if here.is_dir():
        if any((here / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return "dataset"
        names = list(files_below(here))
        found = {
            "shards": any(map(is_shard, os.listdir(here))),
            "images": any(map(is_image_name, names)),
            "dataset": any(name.endswith(".parquet") for name in names),
        }
        kinds = [kind for kind, there in found.items() if there]
        if len(kinds) > 1:
            raise ValueError(f"data: {str(path)!r} holds both {' and '.join(kinds)}; it expects a pattern such as '*.tar'.")
        if not kinds:
            raise ValueError(f"data: {str(path)!r} holds no image, no shard and no parquet; it expects a folder with either.")
        return kinds[0]
    if str(path).startswith("hf://") or here.suffix.lower() == ".parquet":
        return "dataset"
    if here.suffix.lower() == ".zip" and here.is_file():
        return "zip"
    return "prompts" if here.suffix.lower() == ".txt" and here.is_file() else "shards"
