"""Sources of training data: images in a folder, a zip or a list, WebDataset shards, a `datasets` dataset, or prompts alone.

A source can be iterated over repeatedly, always in the same order, and holds one sample in memory at a time.
"""

import os
from pathlib import Path

from gendistill.assets import asset_path
from gendistill.data.images import FORMAT_NAMES
from gendistill.data.samples import ImageSource, Sample
from gendistill.data.sources.captions import CaptionOption
from gendistill.data.sources.folder import ImageFolder, ZipImages, files_below, holdings, is_image_name
from gendistill.data.sources.metadata import LISTS, METADATA, metadata_rows
from gendistill.data.sources.patterns import SAVED, TABLES, matching_files
from gendistill.data.sources.prompts import Prompts
from gendistill.data.sources.shards import SHARD_SUFFIXES, WebDatasetShards, is_shard
from gendistill.data.texts import printable

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
        path: a folder or a `.zip` of images, a pattern of images, a `.jsonl` or `.csv` with a `file_name` in each row (absolute
            or relative to the list), a folder of WebDataset shards, a shard (any tar of images), a pattern of shards, a `.txt`
            of prompts, or a dataset, see `DatasetImages`.
        caption: the caption fields of images; see `ImageFolder`, `ZipImages`, `WebDatasetShards` and
            `DatasetImages`.
        seed: seed of the sampling among several caption fields.
        image_column, split: column and split of a dataset.

    Raises:
        ValueError: `path` does not exist, or holds no training data.
    """
    if not str(path).strip():
        raise ValueError("data: the path is empty; expects a folder or a file of images.")
    path = asset_path(path)
    try:
        kind = _kind(path)
        if kind == "prompts":
            return Prompts(Path(path).expanduser())
        if kind == "dataset":
            from gendistill.data.sources.dataset import DatasetImages  # takes seconds to import, and most runs do not need it

            return DatasetImages(str(path), caption, seed, image_column, split)
        if image_column or split:
            raise ValueError(f"data.image_column and data.split: {printable(path)!r} is not a dataset; they must be unset")
        return _images(kind, Path(path).expanduser(), caption, seed)
    except OSError as error:
        place = printable(error.filename or path)
        raise ValueError(f"data: {place!r} cannot be read ({error.strerror or error}).") from error


def _images(kind: str, path: Path, caption: CaptionOption, seed: int) -> ImageSource:
    if kind == "zip":
        return ZipImages(path, caption, seed)
    if kind == "list":
        rows = list(metadata_rows(path.name, path.read_bytes(), printable(path.parent)))
        if not rows or any(":/" in file[:8] and not Path(file).drive for file, _ in rows):
            found = "names addresses, which are not fetched" if rows else "names no image"
            raise ValueError(f"data: {printable(path)!r} {found}; expects a `file_name` of a local image in each row.")
        return ImageFolder(path.parent, caption, seed, dict.fromkeys(file for file, _ in rows), rows)
    if kind == "files":
        files = matching_files(path)
        neighbours = {file.parent / name for file in files for name in os.listdir(file.parent) if not is_image_name(name)}
        return ImageFolder(Path(), caption, seed, [file.as_posix() for file in {*files, *neighbours}])
    return ImageFolder(path, caption, seed) if kind == "images" else WebDatasetShards(path, caption, seed)


def _kind(path: str | Path) -> str:
    if str(path).startswith("hf://"):
        return "dataset"
    local = Path(path).expanduser()
    if local.is_dir():
        return _kind_of_folder(local)
    name, is_file = local.name.lower(), local.is_file()
    if name.endswith(TABLES):
        return "dataset"
    if name.endswith(".txt") and is_file:
        return "prompts"
    if name.endswith(LISTS) and is_file:
        return "list"
    if name.endswith(".zip") and is_file:
        return "zip"
    return "files" if is_image_name(name) else "shards"


def _kind_of_folder(folder: Path) -> str:
    names = list(files_below(folder))
    if any(name in names for name in SAVED):
        return "dataset"
    tables = [name for name in names if name.lower().endswith(TABLES) and Path(name).name.lower() not in METADATA]
    images, shards = any(map(is_image_name, names)), [name for name in names if is_shard(os.path.basename(name))]
    present = {
        "shards": any("/" not in name for name in shards) or (bool(shards) and not images),
        "images": images,
        "dataset": bool(tables),
    }
    kinds = [kind for kind in present if present[kind]]
    if kinds not in (["dataset"], []) and tables:  # LAION's tables describe the images, and do not hold them
        from gendistill.data.sources.tables import holds_images

        if not any(holds_images(folder / name) for name in tables):
            kinds.remove("dataset")
    named = printable(folder)
    if len(kinds) > 1:
        patterns = {"shards": f"{named}/*.tar", "dataset": f"{named}/**/*.parquet", "images": "the folder of the images alone"}
        expected = " or ".join(patterns[kind] for kind in kinds)
        raise ValueError(f"data: {named!r} holds both {' and '.join(kinds)}; expects one of them: {expected}.")
    if not kinds:
        raise ValueError(
            f"data: {named!r} holds no image, no shard and no parquet{holdings(names)}; expects {FORMAT_NAMES} files, "
            f"{SHARD_SUFFIXES[0]} or {TABLES[0]}, or the name of a single .zip or .jsonl in it."
        )
    return kinds[0]
