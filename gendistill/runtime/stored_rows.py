"""Random access to rows of named tensors in safetensors files, with memory that does not grow with the data."""

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

# A process may open 1,024 files.
MAX_OPEN_FILES = 256


class StoredRows:
    """A complete store by row. Only the requested rows are in memory.

    Rows of different shapes are in different groups; the rows of a group have consecutive numbers.

    Attributes:
        folder: folder of the store.
        groups: number of rows of each group, in the order of the row numbers.
        key: hash of everything that determines the content.
        provenance: the key's parts and a description.
        broken, left_out: number of items that could not be decoded, and of items that were skipped for another reason.
        notes: the notes of all parts by name, summed.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in `folder`; raises ValueError if it is incomplete or has another format."""
        self.folder = Path(folder)
        try:
            index = read_json(self.folder / INDEX)
        except (OSError, ValueError) as error:
            raise ValueError(f"cache: {folder} is incomplete ({error}); expects a folder with {INDEX}.") from error
        if index["format"] != FORMAT:
            raise ValueError(f"cache: {folder} has format {index['format']!r}; expects {FORMAT}.")
        self.key: str = index["key"]
        self.provenance: dict[str, Any] = index["provenance"]
        self.broken, self.left_out = index["skipped"]["broken"], index["skipped"]["other"]
        self.notes: dict[str, float] = index["notes"]
        self.num_parts = len(index["parts"])
        self._tensors: dict[str, Any] = index["tensors"]
        # Runs of consecutive rows in a file: (group, number of the file, number of rows)
        self._runs = [
            (group, number, rows[group])
            for group in sorted(self._tensors)
            for number, rows in enumerate(index["parts"])
            if rows.get(group)
        ]
        self.groups = dict.fromkeys(sorted(self._tensors), 0)
        for group, _, count in self._runs:
            self.groups[group] += count
        self._starts = torch.tensor([0] + [count for _, _, count in self._runs]).cumsum(0)
        self._open = lru_cache(maxsize=MAX_OPEN_FILES)(lambda number: RowFile(part_file(self.folder, number)))

    def __len__(self) -> int:
        return sum(self.groups.values())

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Read rows of one group in the order of `indices`, which may contain duplicates.

        Args:
            indices: n integers in [0, len(self)).

        Returns:
            Tensors (n, ...) by name on the CPU, which do not share memory with the store.

        Raises:
            IndexError: an index is out of range.
            ValueError: the rows are of several groups, or a file does not match the index.
        """
        requested = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if requested.numel() and not 0 <= int(requested.min()) <= int(requested.max()) < len(self):
            raise IndexError(f"rows {int(requested.min())} to {int(requested.max())} of a cache with {len(self)} rows")
        run_of_row = torch.searchsorted(self._starts, requested, right=True) - 1
        runs = run_of_row.unique().tolist()
        groups = {self._runs[run][0] for run in runs} or {next(iter(self.groups))}
        if len(groups) > 1:
            raise ValueError(f"cache: got rows of {', '.join(sorted(groups))}; expects rows of one group.")
        (group,) = groups
        out = {}
        for name, (shape, dtype_name) in self._tensors[group].items():
            dtype = getattr(torch, dtype_name)
            out[name] = torch.empty(len(requested), *shape, dtype=dtype)
            for run in runs:
                positions = (run_of_row == run).nonzero()[:, 0]
                numbers = (requested[positions] - self._starts[run]).tolist()
                file = self._open(self._runs[run][1])
                out[name][positions] = file.read(f"{group}/{name}", numbers, shape, dtype)
        return out

    def blocks(self, size: int = 1024) -> Iterator[dict[str, Tensor]]:
        """All rows of a store with one group in order, in blocks of at most `size` rows."""
        for first in range(0, len(self), size):
            yield self.rows(range(first, min(first + size, len(self))))

    def skipped_keys(self) -> set[str]:
        """Keys of the skipped items."""
        return {json.loads(line)["key"] for line in (self.folder / SKIPPED).read_text(encoding="utf-8").splitlines()}


class RowFile:
    """Reads rows of a safetensors file with tensors (n, ...).

    It reads the requested bytes without a memory map: the pages of a memory map count as memory of the process while the
    map is open, and random access eventually loads the full data set.

    Raises:
        ValueError: the file does not exist or is not a safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is truncated")
            self._header: dict[str, Any] = json.loads(self._file.read(length))
        except (OSError, ValueError) as error:
            raise ValueError(f"cache: {path} cannot be read ({error}); expects a safetensors file.") from error
        self._start = 8 + length

    def read(self, name: str, numbers: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Rows of the tensor `name`.

        Args:
            numbers: n row numbers, in any order.
            shape, dtype: shape and dtype of one row.

        Returns:
            (n, *shape) on the CPU.

        Raises:
            ValueError: the file does not hold the tensor with this shape and dtype, or is truncated.
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
                raise ValueError(f"cache: {self.path} is truncated; expects a row {number} of {name}.")
        return out.view(dtype).reshape(len(numbers), *shape)


def part_file(folder: Path, part: int | str) -> Path:
    """The file with the tensors of a part: a part of rows has a number, other parts have a name."""
    return folder / (f"rows-{part:05d}.safetensors" if isinstance(part, int) else f"{part}.safetensors")
