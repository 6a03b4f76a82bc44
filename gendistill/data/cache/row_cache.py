"""Rows of named tensors on disk, encoded once and read at random, in memory that does not grow with the data.

    folder/KEY/rows-00000.safetensors   some rows of every tensor
    folder/KEY/rows-00000.json          how many, their shapes, the file's SHA-256, and what was left out
    folder/KEY/index.json               all of these together, written last: without it the cache is incomplete
    folder/KEY/skipped.jsonl            the pictures that were left out, and why

Rows of different shapes are different groups: those of one group follow one another in the numbering of rows. Every file
is written aside, flushed and renamed, so that what has its final name is whole.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill.data.cache.rows import RowFile, write_rows
from gendistill.runtime.files import written_aside
from gendistill.runtime.hashing import HashMemo, file_sha256

FORMAT = 2
INDEX = "index.json"
SKIPPED = "skipped.jsonl"

# Each is an open file; a process may have 1,024 of them.
MAX_OPEN_FILES = 256


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why; `broken` where its bytes are at fault."""

    key: str
    reason: str
    broken: bool = True


@dataclass(frozen=True)
class Part:
    """What one file of rows was made of.

    Attributes:
        groups: tensors (n, ...) by name, of one shape within a group; a group of no rows is left out.
        skipped: what was left out.
        missing_captions: rows whose caption is "".
    """

    groups: Mapping[str, Mapping[str, Tensor]]
    skipped: list[Skipped] = field(default_factory=list)
    missing_captions: int = 0


def write_part(folder: Path, number: int, part: Part) -> dict[str, Any]:
    """Write a part into a cache that is being made: its rows, then what describes them, which is returned.

    Raises:
        ValueError: the tensors of a group have different numbers of rows.
    """
    for group, tensors in part.groups.items():
        if len({len(tensor) for tensor in tensors.values()}) != 1:
            sizes = {name: len(tensor) for name, tensor in tensors.items()}
            raise ValueError(f"rows: got {sizes} rows of {group!r}; it takes the same number in every tensor.")
    file = _rows_file(folder, number)
    write_rows(file, part.groups)
    described = {
        "rows": {group: len(next(iter(tensors.values()))) for group, tensors in part.groups.items()},
        "tensors": {
            group: {name: [list(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")] for name, tensor in of.items()}
            for group, of in part.groups.items()
        },
        "sha256": file_sha256(file),
        "skipped": [asdict(skipped) for skipped in part.skipped],
        "missing_captions": part.missing_captions,
    }
    _write_json(file.with_suffix(".json"), described)
    return described


def described_part(folder: Path, number: int, hashes: HashMemo | None = None) -> dict[str, Any] | None:
    """What describes part `number`; None if it is not there.

    Raises:
        ValueError: its rows are not those that were written; from now on it counts as not there.
    """
    file = _rows_file(folder, number)
    try:
        described = _read_json(file.with_suffix(".json"))
    except (OSError, ValueError):
        return None
    actual = None if not file.is_file() else hashes.sha256(file) if hashes else file_sha256(file)
    if actual != described["sha256"]:
        file.with_suffix(".json").unlink(missing_ok=True)
        raise ValueError(f"cache: {file} is damaged; it takes sha256 {described['sha256']}.")
    return described


def write_index(folder: Path, parts: Sequence[dict[str, Any]], key: str, provenance: Mapping[str, Any]) -> None:
    """Make the cache complete.

    Raises:
        ValueError: parts differ in the shapes or dtypes of a group.
    """
    tensors: dict[str, Any] = {}
    for part in parts:
        for group, of_group in part["tensors"].items():
            if tensors.setdefault(group, of_group) != of_group:
                raise ValueError(f"rows: got {of_group} of {group!r}; it takes {tensors[group]}, as in the first rows.")
    skipped = [line for part in parts for line in part["skipped"]]
    with written_aside(folder / SKIPPED) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in skipped), encoding="utf-8")
    index = {
        "format": FORMAT,
        "key": key,
        "tensors": tensors,
        "parts": [part["rows"] for part in parts],
        "skipped": {"broken": sum(line["broken"] for line in skipped), "other": sum(not line["broken"] for line in skipped)},
        "missing_captions": sum(part["missing_captions"] for part in parts),
        "provenance": provenance,
    }
    _write_json(folder / INDEX, index)


class Cache:
    """A complete cache. Nothing but the rows asked for is in memory.

    Attributes:
        folder: where it lies.
        groups: rows of each group, in the order of their numbering.
        key: what it was made of.
        provenance: how it was made.
        broken, left_out, missing_captions: pictures that could not be decoded, that were left out for another reason,
            and rows whose caption is "".
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder = folder
        self.key: str = index["key"]
        self.provenance: dict[str, Any] = index["provenance"]
        self.broken, self.left_out = index["skipped"]["broken"], index["skipped"]["other"]
        self.missing_captions: int = index["missing_captions"]
        self.num_parts = len(index["parts"])
        self._tensors: dict[str, Any] = index["tensors"]
        # Stretches of rows that follow one another in a file: (group, number of the file, rows)
        self._stretches = [
            (group, number, rows[group])
            for group in sorted(self._tensors)
            for number, rows in enumerate(index["parts"])
            if rows.get(group)
        ]
        self.groups = dict.fromkeys(sorted(self._tensors), 0)
        for group, _, count in self._stretches:
            self.groups[group] += count
        self._starts = torch.tensor([0] + [count for _, _, count in self._stretches]).cumsum(0)
        self._open = lru_cache(maxsize=MAX_OPEN_FILES)(lambda number: RowFile(_rows_file(folder, number)))

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Open the cache in `folder`; ValueError if it is incomplete or of another format."""
        folder = Path(folder)
        try:
            index = _read_json(folder / INDEX)
        except (OSError, ValueError) as error:
            raise ValueError(f"cache: {folder} is incomplete ({error}); it takes a folder with {INDEX}.") from error
        if index["format"] != FORMAT:
            raise ValueError(f"cache: {folder} has format {index['format']!r}; it takes {FORMAT}.")
        return cls(folder, index)

    def __len__(self) -> int:
        return sum(self.groups.values())

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Read rows of one group in the order asked for, the same one more than once if asked for.

        Args:
            indices: n integers in [0, len(self)).

        Returns:
            By name, tensors (n, ...) on the CPU, which do not share memory with the cache.

        Raises:
            IndexError: an index is out of range.
            ValueError: the rows are of several groups, or a file is not what the index says.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of a cache of {len(self)}")
        stretch_of_row = torch.searchsorted(self._starts, wanted, right=True) - 1
        stretches = stretch_of_row.unique().tolist()
        groups = {self._stretches[stretch][0] for stretch in stretches} or {next(iter(self.groups))}
        if len(groups) > 1:
            raise ValueError(f"cache: got rows of {', '.join(sorted(groups))}; it takes rows of one group.")
        (group,) = groups
        out = {}
        for name, (shape, dtype_name) in self._tensors[group].items():
            dtype = getattr(torch, dtype_name)
            out[name] = torch.empty(len(wanted), *shape, dtype=dtype)
            for stretch in stretches:
                here = (stretch_of_row == stretch).nonzero()[:, 0]
                numbers = (wanted[here] - self._starts[stretch]).tolist()
                file = self._open(self._stretches[stretch][1])
                out[name][here] = file.read(f"{group}/{name}", numbers, shape, dtype)
        return out

    def skipped_keys(self) -> set[str]:
        """Of the pictures that were left out."""
        return {json.loads(line)["key"] for line in (self.folder / SKIPPED).read_text(encoding="utf-8").splitlines()}

    def verify(self) -> None:
        """Read every byte and raise ValueError if a file is not what was written."""
        for number in range(self.num_parts):
            if described_part(self.folder, number) is None:
                raise ValueError(f"cache: {_rows_file(self.folder, number)} is not there or not described.")


def cache_key(**parts: Any) -> str:
    """16 hex digits of the SHA-256 of everything that decides what is in a cache; any JSON value, in any order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _rows_file(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.safetensors"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps({"hash": cache_key(**value), **value}), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """What `_write_json` wrote; ValueError if it is something else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.pop("hash", "") != cache_key(**value):
        raise ValueError(f"{path.name} is damaged")
    return value
