"""One file of the cache: some rows of named tensors, in safetensors' format, read a row at a time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gendistill.runtime.files import written_aside


def write_rows(path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write tensors (n, ...) on any device, as a whole or not at all; `group/name` is what they are called in the file."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, of_group in groups.items()
        for name, tensor in of_group.items()
    }
    with written_aside(path) as aside:
        aside.write_bytes(save(tensors))


class RowFile:
    """Reads rows of a file that `write_rows` wrote.

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
            raise ValueError(f"cache: {path} cannot be read ({error}); it takes a safetensors file.") from error
        self._start = 8 + length

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

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
                raise ValueError(f"cache: {self.path} is cut short; it takes a row {number} of {name}.")
        return out.view(dtype).reshape(len(numbers), *shape)
