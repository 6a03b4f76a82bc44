"""Rows of named tensors in files of safetensors' format, read at random, in memory that does not grow with the data."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill.runtime.files import read_json

FORMAT = 3
INDEX = "index.json"
SKIPPED = "skipped.jsonl"

# Each is an open file; a process may have 1,024 of them.
MAX_OPEN_FILES = 256


class StoredRows:
    """A complete store, by row. Nothing but the rows asked for is in memory.

    Rows of different shapes are different groups: those of one group follow one another in the numbering of rows.

    Attributes:
        folder: of the store.
        groups: number of rows of each group, in the order of their numbering.
        key: of everything that decides what is in it.
        provenance: how it was made.
        broken, left_out: items that could not be decoded, and items that were left out for another reason.
        notes: the parts' numbers by name, added up.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`; ValueError if it is incomplete or of another format."""
        self.folder = Path(folder)
        try:
            index = read_json(self.folder / INDEX)
        except (OSError, ValueError) as error:
            raise ValueError(f"cache: {folder} is incomplete ({error}); it expects a folder with {INDEX}.") from error
        if index["format"] != FORMAT:
            raise ValueError(f"cache: {folder} has format {index['format']!r}; it expects {FORMAT}.")
        self.key: str = index["key"]
        self.provenance: dict[str, Any] = index["provenance"]
        self.broken, self.left_out = index["skipped"]["broken"], index["skipped"]["other"]
        self.notes: dict[str, float] = index["notes"]
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
        self._open = lru_cache(maxsize=MAX_OPEN_FILES)(lambda number: RowFile(part_file(self.folder, number)))

    def __len__(self) -> int:
        return sum(self.groups.values())

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Read rows of one group in the order asked for, the same one more than once if asked for.

        Args:
            indices: n integers in [0, len(self)).

        Returns:
            By name, tensors (n, ...) on the CPU, which do not share memory with the store.

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
            raise ValueError(f"cache: got rows of {', '.join(sorted(groups))}; it expects rows of one group.")
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

    def blocks(self, size: int = 1024) -> Iterator[dict[str, Tensor]]:
        """All rows of a store of one group in order, at most `size` at a time."""
        for first in range(0, len(self), size):
            yield self.rows(range(first, min(first + size, len(self))))

    def skipped_keys(self) -> set[str]:
        """Of the items that were left out."""
        return {json.loads(line)["key"] for line in (self.folder / SKIPPED).read_text(encoding="utf-8").splitlines()}


class RowFile:
    """Reads rows of a safetensors file of tensors (n, ...).

    It reads the bytes that are asked for, with no memory map: the pages of a map count as the process's memory for as
    long as it is open, and with random rows that becomes the whole data set.

    Raises:
        ValueError: the file is missing, or no safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is cut short")
            self._header: dict[str, Any] = json.loads(self._file.read(length))
        except (OSError, ValueError) as error:
            raise ValueError(f"cache: {path} cannot be read ({error}); it expects a safetensors file.") from error
        self._start = 8 + length

    def read(self, name: str, numbers: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Rows of the tensor `name`.

        Args:
            numbers: n rows, in any order.
            shape, dtype: of one row.

        Returns:
            (n, *shape) on the CPU.

        Raises:
            ValueError: the file holds no such tensor, or not of this shape or dtype, or ends too early.
        """
        entry = self._header.get(name, {"shape": [], "data_offsets": [0, 0]})
        first, last = entry["data_offsets"]
        size = dtype.itemsize * torch.Size(shape).numel()
        if entry["shape"][1:] != list(shape) or last - first != entry["shape"][0] * size:
            raise ValueError(f"cache: {self.path} does not hold {name} {list(shape)} of {dtype}; it holds {entry}.")
        out = torch.empty(len(numbers), size, dtype=torch.uint8)
        for row, number in zip(out.numpy(), numbers, strict=True):
            self._file.seek(self._start + first + number * size)
            if self._file.readinto(row) != size:
                raise ValueError(f"cache: {self.path} is cut short; it expects a row {number} of {name}.")
        return out.view(dtype).reshape(len(numbers), *shape)


def part_file(folder: Path, part: int | str) -> Path:
    """Where a part's tensors lie: a part of rows has a number, any other a name."""
    return folder / (f"rows-{part:05d}.safetensors" if isinstance(part, int) else f"{part}.safetensors")
