"""Images in a dataset of Hugging Face's `datasets`: parquet or arrow files, a saved folder, or a dataset of the hub."""

import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import datasets
from datasets import load_dataset, load_from_disk

from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.data.sources.folder import files_below, is_image_name
from gendistill.data.sources.patterns import SAVED, TABLES, matching_files
from gendistill.data.sources.tables import TableRows, tables_by_split
from gendistill.data.texts import printable, text_of
from gendistill.runtime.hashing import HashMemo, sha256_of

HUB = "hf://datasets/"
NUMBER = "_number"  # after the name of a column of class labels: the field of their numbers
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp")


class DatasetImages(ImageSource):
    """The rows of a `datasets` dataset, read as a stream and in order. Code of a dataset is never executed.

    Args:
        path: a `.parquet` or `.arrow` file, a pattern of such files or a folder of them, a folder written by `save_to_disk`, or
            `hf://datasets/OWNER/NAME@COMMIT`.
        caption: columns of texts, of lists of texts, from which one is sampled, or of class labels, whose names are the
            captions (`label_number`: their numbers); by default the columns called `text`, `caption` or `prompt`, the only
            text column, or the only labels.
        seed: seed of the sampling among several captions.
        image_column: by default the first column of type `Image`, a binary column with a name of `IMAGE_COLUMNS`, or the
            only binary column.
        split: by default the only split, or `train`.

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
        self.path = printable(path)
        self.files, splits = _open(path)
        self.split = split or ("train" if "train" in splits else next(iter(splits)))
        if self.split not in splits or (split is None and len(splits) > 1 and "train" not in splits):
            raise ValueError(f"data.split {split!r}: {self.path!r} has {', '.join(sorted(splits))}; expects one of them")
        rows = splits[self.split]
        self.image_column = image_column or _image_column_of(rows.features, self.path)
        if self.image_column not in rows.features:
            raise ValueError(
                f"data.image_column {image_column!r}: {self.path!r} has {', '.join(rows.features)}; expects one of them"
            )
        self.labels = {name: kind for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
        texts = {name: _is_list(kind) for name, kind in rows.features.items() if _is_text(kind)}
        choice = CaptionChoice.from_option(caption, texts | dict.fromkeys(self.labels, False) if caption else texts, seed)
        if caption is None and not choice.found:
            choice = CaptionChoice.from_option(None, dict.fromkeys(self.labels, False), seed)
        super().__init__(choice, (choice, self.image_column, self.split))
        self.seen = f"found the columns {', '.join(rows.features)}"
        if caption is not None:
            self.choice.require([*texts, *self.labels, *(f"{name}{NUMBER}" for name in self.labels)], self.path)
        columns = [self.image_column, *(name for name in rows.features if name in texts or name in self.labels)]
        self._rows = rows.select_columns(columns) if isinstance(rows, TableRows) else _undecoded(rows, columns)

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """The contents of the files, or the pinned name of a hub dataset."""
        yield [self.path if not self.files else ""]
        for file in self.files:
            yield [file.name, sha256_of(file, hashes)]

    def named(self) -> str:
        return f"the split {self.split} of the dataset {self.path}"

    def entries(self) -> Iterator[Entry]:
        for number, row in enumerate(self._read()):
            file, missing = self._image(row.pop(self.image_column))
            texts = {name: self._text(name, value) for name, value in row.items()}
            texts |= {f"{name}{NUMBER}": str(row[name]) for name in self.labels if row[name] is not None}
            yield Entry(f"{self.split}/{number}", file, texts, missing)

    def _image(self, value: Any) -> tuple[Path | BinaryIO, str]:
        """The encoded image of a row, and why there is none.

        A row may hold the path of any file, or an address, instead of bytes. `datasets` writes paths relative to its working
        folder; of these, images below the working folder or the dataset's are read.
        """
        fields = value if isinstance(value, Mapping) else {"bytes": value}
        if isinstance(fields.get("bytes"), bytes):
            return io.BytesIO(fields["bytes"]), ""
        path = str(fields.get("path") or "")
        places = [Path(), *dict.fromkeys(file.parent for file in self.files)]
        is_relative = is_image_name(path) and not Path(path).is_absolute() and ".." not in Path(path).parts
        file = next((place / path for place in places if is_relative and (place / path).is_file()), None)
        if file is not None:
            return file, ""
        reason = f"the row has only the path {printable(path)!r}; expects the bytes of the image, or an existing relative path"
        return io.BytesIO(), reason if path else "the row has no bytes of an image"

    def _text(self, column: str, value: Any) -> str | list[str]:
        if column in self.labels and isinstance(value, int):
            names = self.labels[column].names or []
            value = names[value] if 0 <= value < len(names) else ("" if value < 0 else str(value))
        return text_of(value) or ""

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._rows
        except Exception as error:  # as in _open
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"data: {self.path!r} cannot be read to its end ({reason}).") from error


def _open(path: str) -> tuple[list[Path], Mapping[str, Any]]:
    """The local files of a dataset, and its splits by name."""
    pinned = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)@([0-9a-f]{{40}})", path)
    if path.startswith("hf://") and not pinned:
        raise ValueError(f"data: {path!r} is not pinned; expects {HUB}OWNER/NAME@COMMIT, with the 40 digits of a commit.")
    local = Path(path).expanduser()
    if not pinned and not local.exists() and not any(mark in path for mark in "*?[{"):
        raise ValueError(f"data: {printable(path)!r} cannot be opened as a dataset (no such file).")
    splits: Mapping[str, Any]
    try:
        with _quietly():
            if pinned:
                return [], dict(load_dataset(pinned[1], revision=pinned[2], streaming=True))
            if any((local / name).is_file() for name in SAVED):
                dataset = load_from_disk(str(local))
                splits = dataset if isinstance(dataset, dict) else {"train": dataset}
                return sorted(local.rglob("*.arrow")), splits
            if local.is_dir():
                names = [name for name in files_below(local) if name.lower().endswith(TABLES)]
                splits = {split: rows.checked() for split, rows in tables_by_split(local, names).items()}
                return [local / name for name in names], splits
            files = matching_files(path)
            return files, {"train": TableRows(files).checked()}
    except Exception as error:  # datasets and pyarrow raise nearly anything on damaged files
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"data: {printable(path)!r} cannot be opened as a dataset ({reason}).") from error


def _undecoded(rows: Any, columns: list[str]) -> Any:
    """The columns of a `datasets` dataset, with encoded images."""
    return rows.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))


def _image_column_of(features: Mapping[str, Any], path: str) -> str:
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [name for name, feature in features.items() if _is_bytes(feature)]
    named = [name for name in IMAGE_COLUMNS if name in encoded]
    found = typed + named or (encoded if len(encoded) == 1 else [])
    if not found:
        columns = ", ".join(features)
        raise ValueError(f"data: {path!r} holds no images, only {columns}; expects a column of images (data.image_column).")
    return found[0]


def _is_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):  # images as `datasets` stores them, without the type `Image`
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", "") in ("string", "large_string")


def _is_list(feature: Any) -> bool:
    return hasattr(feature, "feature")


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the logs of `datasets` about unreadable files, which our ValueError reports."""
    datasets.disable_progress_bars()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
