"""Images that lie in a dataset of Hugging Face's `datasets`: parquet files, a saved folder, or one of the hub."""

import glob
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import load_dataset, load_from_disk

from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.runtime.hashing import HashMemo, chance, sha256_of

HUB = "hf://datasets/"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")
CAPTION_COLUMNS = ("text", "caption", "prompt", "txt", "description")


class DatasetImages(ImageSource):
    """The rows of a `datasets` dataset, read as a stream and in order. No code of a dataset is ever run.

    Args:
        path: a `.parquet` file, a pattern of such files or a folder of them, a folder written by `save_to_disk`, or
            `hf://datasets/OWNER/NAME@COMMIT`.
        caption: columns of texts (or of lists of texts, of which one is sampled); by default the only one, or the one
            that is called `text`, `caption`, `prompt`, `txt` or `description`.
        seed: of the sample among several captions.
        image_column: by default the first of type `Image`, or a binary one that is called `image` or the like.
        split: by default the only one, or `train`.

    Raises:
        ValueError: the dataset cannot be opened, or has no such split or column.
    """

    def __init__(
        self,
        path: str,
        caption: CaptionOption = None,
        seed: int = 0,
        image_column: str | None = None,
        split: str | None = None,
    ):
        self.path, self.seed = path, seed
        self.files, found = _open(path)
        splits = found if isinstance(found, dict) else {"train": found}
        self.split = split or ("train" if "train" in splits else next(iter(splits)))
        if self.split not in splits or (split is None and len(splits) > 1 and "train" not in splits):
            raise ValueError(f"data.split {split!r}: {path!r} has {', '.join(sorted(splits))}; expects one of them")
        rows = splits[self.split]
        self.image_column = image_column or _image_column_of(rows.features, path)
        if self.image_column not in rows.features:
            raise ValueError(f"data.image_column {image_column!r}: {path!r} has {', '.join(rows.features)}")
        texts = [name for name, feature in rows.features.items() if _is_text(feature)]
        named = [name for name in CAPTION_COLUMNS if name in texts]
        default = (named or texts or ["text"])[0]
        if caption is None and not named and len(texts) > 1:
            raise ValueError(f"data.caption: {path!r} has the texts {', '.join(texts)}; expects one of them.")
        choice = CaptionChoice.of(caption, default, seed)
        super().__init__(choice, (choice, self.image_column, self.split))
        if caption is not None:
            self.choice.require(texts, path)
        self._rows = rows.select_columns(
            [self.image_column, *(name for name in self.choice.fields if name in texts)]
        ).cast_column(self.image_column, datasets.Image(decode=False))

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """The files' contents, or the pinned name."""
        yield [self.path if not self.files else ""]
        for file in self.files:
            yield [file.name, sha256_of(file, hashes)]

    def named(self) -> str:
        return f"the split {self.split} of the dataset {self.path}"

    def entries(self) -> Iterator[Entry]:
        for number, row in enumerate(self._read()):
            key = f"{self.split}/{number}"
            # A dataset may hold a path in the place of bytes, of any file or address: it is not followed.
            encoded = (row.pop(self.image_column) or {}).get("bytes") or b""
            texts = {name: _one_text(value, self.seed, key) for name, value in row.items()}
            yield Entry(key, io.BytesIO(encoded), texts)

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._rows
        except Exception as error:  # as when it is opened
            what = str(error).strip().split("\n")[0]
            raise ValueError(f"data: {self.path!r} cannot be read to its end ({what}).") from error


def _open(path: str) -> tuple[list[Path], Any]:
    """The local files that a dataset is read from, and the dataset: one split, or several by name."""
    pinned = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)@([0-9a-f]{{40}})", path)
    if path.startswith("hf://") and not pinned:
        raise ValueError(f"data: {path!r} is not pinned; it expects {HUB}OWNER/NAME@COMMIT, with the 40 digits of a commit.")
    here = Path(path).expanduser()
    found = here.rglob("*.parquet") if here.is_dir() else map(Path, glob.glob(str(here), recursive=True))
    files = sorted(found)
    try:
        with _quietly():
            if pinned:
                return [], load_dataset(pinned[1], revision=pinned[2], streaming=True)
            if here.is_dir() and files:
                return files, load_dataset("parquet", data_dir=str(here), streaming=True)
            if here.is_dir():
                return sorted(here.rglob("*.arrow")), load_from_disk(str(here))
            return files, load_dataset("parquet", data_files=[str(file) for file in files], streaming=True)
    except Exception as error:  # datasets and pyarrow raise nearly anything on damaged files
        what = "no such file" if not pinned and not here.exists() and not files else str(error).strip().split("\n")[0]
        raise ValueError(f"data: {path!r} cannot be opened as a dataset ({what}).") from error


def _image_column_of(features: dict[str, Any], path: str) -> str:
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    named = [name for name in IMAGE_COLUMNS if name in features and _is_bytes(features[name])]
    if not typed + named:
        columns = ", ".join(features)
        raise ValueError(f"data: {path!r} holds no images, only {columns}; it expects a column of images (data.image_column).")
    return (typed + named)[0]


def _is_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):  # images as `datasets` stores them, without its word for it
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", "") in ("string", "large_string")


def _one_text(value: str | list[str] | None, seed: int, key: str) -> str:
    """A text, or the one of several that the seed and the row's key decide."""
    if isinstance(value, list):
        texts = [text for text in value if text]
        value = texts[int(chance("caption", seed, key) * len(texts))] if texts else ""
    return (value or "").strip()


@contextmanager
def _quietly() -> Iterator[None]:
    """What `datasets` logs about a file that it cannot read, our own sentence says."""
    datasets.disable_progress_bars()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
