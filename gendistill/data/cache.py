"""Rows of named tensors on disk, encoded once and read at random, in memory that does not grow with the data.

    folder/KEY/rows-00000.safetensors   `rows_per_shard` rows of every tensor
    folder/KEY/table-NAME.safetensors   a tensor that rows point into, such as one embedding a distinct prompt
    folder/KEY/index.json               what there is, written last: without it the cache is incomplete

Every file is written aside, flushed and renamed, so that what has its final name is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gendistill.data.hashing import file_sha256, update

FORMAT = 1
INDEX = "index.json"

# A shard that is open is one or two of the 65,530 memory maps that Linux grants a process.
MAX_OPEN_SHARDS = 1024


class CacheWriter:
    """Writes a cache row by row; at most `rows_per_shard` rows and one append wait in memory.

    As a context manager it closes the cache if all went well and leaves it incomplete otherwise.

    Args:
        folder: made if it is not there; a complete cache in it counts as incomplete from now on.
        rows_per_shard: rows in each file but the last.
        key: what the cache was made of, see `cache_key`.
        provenance: how it was made, for people; anything JSON holds.
    """

    def __init__(self, folder: Path, rows_per_shard: int = 1024, *, key: str = "", provenance: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self.rows_per_shard = rows_per_shard
        self._index: dict[str, Any] = {
            "format": FORMAT,
            "key": key,
            "rows": 0,
            "shards": [],
            "tensors": {},
            "tables": {},
            "provenance": json.loads(json.dumps(provenance or {})),  # now, not after hours of encoding
        }
        self._waiting: list[dict[str, Tensor]] = []
        self._waiting_rows = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)

    def append(self, rows: Mapping[str, Tensor]) -> None:
        """Add n rows.

        Args:
            rows: tensors (n, ...) by name, on any device; copied.

        Raises:
            ValueError: names, shapes or dtypes differ from those of the first rows, or n from tensor to tensor.
        """
        if len({len(tensor) for tensor in rows.values()}) != 1:
            sizes = {name: len(tensor) for name, tensor in rows.items()}
            raise ValueError(f"rows: got {sizes} rows; it takes the same number in every tensor.")
        tensors = {name: _signature(tensor.shape[1:], tensor.dtype) for name, tensor in rows.items()}
        expected = self._index["tensors"] = self._index["tensors"] or tensors
        if tensors != expected:
            raise ValueError(f"rows: got {tensors}; it takes {expected}, as in the first rows.")
        self._waiting.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in rows.items()})
        self._waiting_rows += len(next(iter(rows.values())))
        if self._waiting_rows >= self.rows_per_shard:
            self._write_waiting(keep_rest=True)

    def add_table(self, name: str, tensor: Tensor) -> None:
        """Store a tensor (...) as a whole, for rows to point into by an int64 column of their own."""
        entry = self._write(f"table-{name}.safetensors", {"table": tensor.detach().cpu().contiguous()})
        self._index["tables"][name] = entry | _signature(tensor.shape, tensor.dtype)

    def close(self) -> None:
        """Write what still waits, then the index, which makes the cache complete."""
        self._write_waiting(keep_rest=False)
        aside = self.folder / f".{INDEX}.tmp"
        aside.write_text(json.dumps(self._index, indent=1), encoding="utf-8")
        _rename_flushed(aside, self.folder / INDEX)

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def _write_waiting(self, keep_rest: bool) -> None:
        if not self._waiting_rows:
            return
        rows = {name: torch.cat([part[name] for part in self._waiting]) for name in self._index["tensors"]}
        whole = self._waiting_rows // self.rows_per_shard * self.rows_per_shard
        end = whole if keep_rest else self._waiting_rows
        for first in range(0, end, self.rows_per_shard):
            last = min(first + self.rows_per_shard, end)
            shard = {name: tensor[first:last].contiguous() for name, tensor in rows.items()}
            entry = self._write(f"rows-{len(self._index['shards']):05d}.safetensors", shard)
            self._index["shards"].append(entry | {"rows": last - first})
            self._index["rows"] += last - first
        self._waiting = [{name: tensor[end:].clone() for name, tensor in rows.items()}]
        self._waiting_rows -= end

    def _write(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        aside = self.folder / f".{name}.tmp"
        save_file(tensors, aside)
        entry = {"name": name, "bytes": aside.stat().st_size, "sha256": file_sha256(aside)}
        _rename_flushed(aside, self.folder / name)
        return entry


class Cache:
    """A complete cache, read through memory maps: what is not asked for is not loaded.

    Attributes:
        folder: where it lies.
        names: of the tensors that a row has.
        key: what it was made of.
        provenance: how it was made.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder = folder
        self.names: list[str] = list(index["tensors"])
        self.key: str = index["key"]
        self.provenance: dict[str, Any] = index["provenance"]
        self._index = index
        self._starts = torch.tensor([0] + [shard["rows"] for shard in index["shards"]]).cumsum(0)
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open_file)

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Open the cache in `folder`.

        Raises:
            ValueError: the cache is incomplete, of another format, or a file of it is missing or cut short.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"cache: {folder} has format {index['format']!r}; it takes {FORMAT}.")
            for file in _files(index):
                if (folder / file["name"]).stat().st_size != file["bytes"]:
                    raise ValueError(f"cache: {folder / file['name']} is cut short; it takes {file['bytes']} bytes.")
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"cache: {folder} is incomplete ({error!r}); it takes a folder with {INDEX}.") from error
        return cls(folder, index)

    def __len__(self) -> int:
        return self._index["rows"]

    def rows(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Read rows in the order asked for, the same one more than once if asked for.

        Args:
            indices: n integers in [0, len(self)).

        Returns:
            By name, tensors (n, ...) on the CPU, which do not share memory with the cache.

        Raises:
            IndexError: an index is out of range.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of a cache of {len(self)}")
        out = {
            name: torch.empty(len(wanted), *signature["shape"], dtype=getattr(torch, signature["dtype"]))
            for name, signature in self._index["tensors"].items()
        }
        shard_of_row = torch.searchsorted(self._starts, wanted, right=True) - 1
        for shard in shard_of_row.unique().tolist():
            here = (shard_of_row == shard).nonzero()[:, 0]
            file = self._open(self._index["shards"][shard]["name"])
            for name, tensor in out.items():
                # get_tensor is a view of the memory map; indexing it copies the rows asked for and no others
                tensor[here] = file.get_tensor(name)[wanted[here] - self._starts[shard]]
        return out

    def table(self, name: str) -> Tensor:
        """A table as a memory-mapped tensor, to be read and not written: only the pages that are touched are loaded."""
        return self._open(self._index["tables"][name]["name"]).get_tensor("table")

    def verify(self) -> None:
        """Read every byte and raise ValueError if a file is not what was written."""
        for file in _files(self._index):
            if file_sha256(self.folder / file["name"]) != file["sha256"]:
                raise ValueError(f"cache: {self.folder / file['name']} is damaged; it takes sha256 {file['sha256']}.")

    def _open_file(self, name: str) -> Any:
        return safe_open(self.folder / name, framework="pt")


def build_or_open(folder: Path, key: str, provenance: Mapping[str, Any], build: Callable[[CacheWriter], None]) -> Cache:
    """Open the cache `folder/key`, after building it if it is not there, is incomplete or was made of something else.

    A lock lets one process build while the others of the same machine wait, and then open what it built.

    Args:
        folder: of all caches.
        key: from `cache_key`.
        provenance: how the cache is made, for people; anything JSON holds.
        build: appends all rows to the writer it is given, and adds the tables; it need not close it.
    """
    folder = Path(folder)
    if (cache := _complete(folder / key, key)) is not None:
        return cache
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if (cache := _complete(folder / key, key)) is not None:  # another process built it while this one waited
            return cache
        shutil.rmtree(folder / key, ignore_errors=True)
        with CacheWriter(folder / key, key=key, provenance=provenance) as writer:
            build(writer)
    return Cache.open(folder / key)


def cache_key(**parts: Any) -> str:
    """16 hex digits of the SHA-256 of everything that decides what is in a cache; any JSON value, in any order."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def weights_hash(path: Path) -> str:
    """16 hex digits for the weights of a model: the safetensors files below a folder, by path and content, or one file.

    Raises:
        ValueError: there is no safetensors file.
    """
    path = Path(path)
    files = {path.name: path} if path.is_file() else {f.relative_to(path).as_posix(): f for f in path.rglob("*")}
    weights = sorted(name for name, file in files.items() if file.suffix == ".safetensors")
    if not weights:
        raise ValueError(f"weights: {str(path)!r} holds no weights; it takes a folder with .safetensors files.")
    digest = hashlib.sha256()
    for name in weights:
        update(digest, [name, file_sha256(files[name])])
    return digest.hexdigest()[:16]


def _complete(folder: Path, key: str) -> Cache | None:
    try:
        cache = Cache.open(folder)
    except ValueError:
        return None
    return cache if cache.key == key else None


def _signature(shape: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}


def _files(index: dict[str, Any]) -> list[dict[str, Any]]:
    return [*index["shards"], *index["tables"].values()]


def _rename_flushed(aside: Path, final: Path) -> None:
    """Give a file its final name once its bytes are on the disk."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, final)
