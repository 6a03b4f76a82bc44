"""Sources of training data: a folder or a zip of images, WebDataset shards, a `datasets` dataset, or prompts alone.

A source can be iterated over repeatedly, always in the same order, and holds one sample in memory at a time.
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
    """Open the source at `path`.

    Args:
        path: a folder or a `.zip` of images, a folder of WebDataset shards, a shard (any tar of images), a
            pattern of shards, a `.txt` of prompts, or a dataset, see `DatasetImages`.
        caption: the caption fields of images; see `ImageFolder`, `ZipImages`, `WebDatasetShards` and
            `DatasetImages`.
        seed: seed of the sampling among several caption fields.
        image_column, split: column and split of a dataset.

    Raises:
        ValueError: `path` does not exist, or holds no training data.
    """
    path = asset_path(path)
    kind = _kind(path)
    if kind == "prompts":
        return Prompts(Path(path).expanduser())
    if kind == "dataset":
        from gendistill.data.sources.dataset import DatasetImages  # takes seconds to import, and most runs do not need it

        return DatasetImages(str(path), caption, seed, image_column, split)
    if image_column or split:
        raise ValueError(f"data.image_column and data.split: {str(path)!r} is not a dataset; they must be unset")
    local = Path(path).expanduser()
    if kind == "zip":
        return ZipImages(local, caption, seed)
    return ImageFolder(local, caption, seed) if kind == "images" else WebDatasetShards(local, caption, seed)


def _kind(path: str | Path) -> str:
    local = Path(path).expanduser()
    if local.is_dir():
        if any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return "dataset"
        names = list(files_below(local))
        contains = {
            "shards": any(map(is_shard, os.listdir(local))),
            "images": any(map(is_image_name, names)),
            "dataset": any(name.endswith(".parquet") for name in names),
        }
        kinds = [kind for kind, present in contains.items() if present]
        if len(kinds) > 1:
            raise ValueError(f"data: {str(path)!r} holds both {' and '.join(kinds)}; expects a pattern such as '*.tar'.")
        if not kinds:
            raise ValueError(f"data: {str(path)!r} holds no image, no shard and no parquet; expects one of these.")
        return kinds[0]
    if str(path).startswith("hf://") or local.suffix.lower() == ".parquet":
        return "dataset"
    if local.suffix.lower() == ".zip" and local.is_file():
        return "zip"
    return "prompts" if local.suffix.lower() == ".txt" and local.is_file() else "shards"
