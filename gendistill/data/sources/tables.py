"""Parquet and arrow files, read by rows: the file names may hold any characters, and memory does not grow with the rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Features

ROWS = 16  # that are decoded at a time
# Names of splits in file and folder names, as `datasets` reads them.
SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}


@dataclass(frozen=True)
class TableRows:
    """The rows of files with one schema; `columns` None: all of them."""

    files: Sequence[Path]
    columns: tuple[str, ...] | None = None

    @cached_property
    def features(self) -> Features:
        """The columns and their types, as `datasets` describes them."""
        schema = _schema(self.files[0])
        plain = [field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field for field in schema]
        return Features.from_arrow_schema(pa.schema(plain, schema.metadata))

    def checked(self) -> "TableRows":
        """These rows; raises an error of pyarrow if the first file is damaged."""
        assert self.features is not None
        return self

    def select_columns(self, columns: Sequence[str]) -> "TableRows":
        return TableRows(self.files, tuple(columns))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            for batch in _batches(file, list(self.columns or self.features)):
                yield from batch.to_pylist()


def holds_images(file: Path) -> bool:
    """Whether a file may hold images: a column of bytes, or no readable schema."""
    try:
        return any("binary" in str(field.type) for field in _schema(file))
    except (pa.ArrowException, OSError):
        return True


def tables_by_split(folder: Path, names: Sequence[str]) -> dict[str, TableRows]:
    """The tables of a folder by split, from names such as `train-00000-of-00002.parquet` or `data/test/0.parquet`."""
    splits: dict[str, list[Path]] = {}
    for name in sorted(names):
        splits.setdefault(_split_of(name), []).append(folder / name)
    if "" in splits:  # no split in some names; in none, all rows are one split, as with `datasets`
        splits = {"train": [folder / name for name in sorted(names)]} if len(splits) == 1 else splits
        splits.pop("", None)
    return {split: TableRows(files) for split, files in splits.items()}


def _split_of(name: str) -> str:
    if sharded := re.search(r"(?:^|/)([A-Za-z0-9_.]+)-\d{5}-of-\d{5}", name):
        return sharded[1]
    words = set(re.findall("[a-z]+", name.lower().rpartition(".")[0]))
    return next((split for split, keywords in SPLITS.items() if words & set(keywords.split())), "")


def _schema(file: Path) -> Any:
    if file.suffix.lower() == ".parquet":
        with file.open("rb") as stream:
            return pa.parquet.read_schema(stream)
    with file.open("rb") as stream:
        return _arrow_reader(stream).schema


def _batches(file: Path, columns: list[str]) -> Iterator[Any]:
    with file.open("rb") as stream:
        if file.suffix.lower() == ".parquet":
            yield from pa.parquet.ParquetFile(stream).iter_batches(ROWS, columns=columns)
            return
        reader = _arrow_reader(stream)
        batches = reader if hasattr(reader, "read_next_batch") else map(reader.get_batch, range(reader.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS).select(columns)


def _arrow_reader(stream: Any) -> Any:
    """The reader of an arrow file, in the format of files or of streams."""
    if stream.read(6) == b"ARROW1":
        return pa.ipc.open_file(stream)
    stream.seek(0)
    return pa.ipc.open_stream(stream)
