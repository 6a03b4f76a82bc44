"""A cache on disk: parts of named tensors, under a key of everything that determines them.

    folder/KEY/rows-00000.safetensors   the tensors of one part
    folder/KEY/rows-00000.json          their shapes, the file's SHA-256, notes (numbers), and the skipped items
    folder/KEY/index.json               all parts together and their provenance; written last: without it the store is
                                        incomplete
    folder/KEY/skipped.jsonl            the skipped items, with reasons

Every process iterates over all parts in order and computes those that do not exist and that no other process is
computing: each part has a lock, so that no two processes write the same file, and the content of a part does not depend
on the process. A killed process leaves complete parts and no lock; the next process computes the rest. Every file is
written under a temporary name, flushed and renamed, so that a file with its final name is complete.

Three kinds of data are stored: the rows of training data (`data.cached`), the features of images
(`evaluation.feature_cache`) and the images of a model (`evaluation.image_cache`).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from gendistill.runtime.files import atomic_write, canonical_json, read_json, require_text, write_json
from gendistill.runtime.hashing import HASHES, HashMemo
from gendistill.runtime.stored_rows import FORMAT, INDEX, SKIPPED, StoredRows, part_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """An item that was left out, with the reason; `broken` if it cannot be decoded."""

    key: str
    reason: str
    broken: bool = True


@dataclass(frozen=True)
class StoredPart:
    """The content of one file of a store.

    Attributes:
        groups: tensors (n, ...) by name, of one shape within a group; a group without rows is omitted.
        skipped: the items that were left out.
        notes: additional numbers, which are summed over all parts.
    """

    groups: Mapping[str, Mapping[str, Tensor]]
    skipped: list[Skipped] = field(default_factory=list)
    notes: Mapping[str, float] = field(default_factory=dict)


Parts: TypeAlias = Callable[[], Iterator[Callable[[], StoredPart]]]
"""Returns an iterator over all parts in order, as functions that compute them. One key always gives the same parts."""


class Store:
    """The parts with one key.

    Args:
        root: the folder of all stores; created with the first file.
        key_parts: everything that determines the content; any JSON values.
        described: one line about the provenance of the content, which is not part of the key.
        field: the setting of `root`, for error messages.
    """

    def __init__(self, root: Path | str, key_parts: Mapping[str, Any], described: str = "", field: str = "cache") -> None:
        self.root, self.field = Path(root).expanduser(), field
        require_text(field, self.root)
        self.key = cache_key(**key_parts)
        self.folder = self.root / self.key
        self.provenance = json.loads(canonical_json({**key_parts, "described": described}))
        self._hashes = HashMemo(self.root / HASHES)

    def build(self, parts: Parts) -> StoredRows:
        """Open the store, after computing the parts that are missing or damaged.

        Raises:
            ValueError: the folder cannot be written, or parts differ in the shapes or dtypes of a group.
        """
        if (rows := self._verified_rows()) is None:
            described: list[dict[str, Any] | None] = [None]
            while None in described:
                described = self._write_missing(parts)
                for number, part in enumerate(described):
                    if part is None:  # another process computes it: wait until it finishes or ends
                        with self._lock(number):
                            described[number] = self.described(number)
            self.complete([part for part in described if part])
            rows = StoredRows(self.folder)
        self._hashes.keep()
        return rows

    def write(self, part: int | str, content: StoredPart) -> dict[str, Any]:
        """Write the tensors of a part, then its description, which is returned.

        Raises:
            ValueError: the file cannot be written, or the tensors of a group have different numbers of rows.
        """
        for group, tensors in content.groups.items():
            if len({len(tensor) for tensor in tensors.values()}) != 1:
                sizes = {name: len(tensor) for name, tensor in tensors.items()}
                raise ValueError(f"rows: got {sizes} rows of {group!r}; expects the same number in every tensor.")
        data = save(
            {
                f"{group}/{name}": tensor.detach().cpu().contiguous()
                for group, tensors in content.groups.items()
                for name, tensor in tensors.items()
            }
        )
        described = {
            "rows": {group: len(next(iter(tensors.values()))) for group, tensors in content.groups.items()},
            "tensors": {
                group: {name: _layout(tensor) for name, tensor in tensors.items()} for group, tensors in content.groups.items()
            },
            "sha256": hashlib.sha256(data).hexdigest(),
            "skipped": [asdict(skipped) for skipped in content.skipped],
            "notes": dict(content.notes),
        }
        file = part_file(self.folder, part)
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_bytes(data)
        write_json(file.with_suffix(".json"), described)
        return described

    def read(self, part: str) -> dict[str, Tensor] | None:
        """The tensors of a part by `group/name`; None if the part does not exist or is damaged."""
        file = part_file(self.folder, part)
        try:
            sha256, data = read_json(file.with_suffix(".json"))["sha256"], file.read_bytes()
        except (OSError, ValueError):
            return None
        return load(data) if hashlib.sha256(data).hexdigest() == sha256 else None

    def described(self, part: int | str) -> dict[str, Any] | None:
        """The description of a part; None if the part does not exist or is damaged. A damaged part loses its description."""
        file = part_file(self.folder, part)
        try:
            described = read_json(file.with_suffix(".json"))
        except (OSError, ValueError):
            return None
        if file.is_file() and self._hashes.sha256(file) == described["sha256"]:
            return described
        file.with_suffix(".json").unlink(missing_ok=True)
        logger.warning("cache: %s is damaged; expects sha256 %s. It is computed again.", file, described["sha256"])
        return None

    def notes(self) -> dict[str, float]:
        """The notes of the existing parts, summed; the store may be incomplete."""
        notes = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(OSError, ValueError):
                notes.append(read_json(file.with_suffix(".json"))["notes"])
        return _summed(notes)

    def complete(self, parts: Sequence[dict[str, Any]]) -> None:
        """Write the index of all parts, from the descriptions that `write` returns.

        Raises:
            ValueError: parts differ in the shapes or dtypes of a group.
        """
        tensors: dict[str, Any] = {}
        for part in parts:
            for group, layout in part["tensors"].items():
                if tensors.setdefault(group, layout) != layout:
                    raise ValueError(f"rows: got {layout} of {group!r}; expects {tensors[group]}, as in the first rows.")
        skipped = [line for part in parts for line in part["skipped"]]
        with atomic_write(self.folder / SKIPPED) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in skipped), encoding="utf-8")
        index = {
            "format": FORMAT,
            "key": self.key,
            "tensors": tensors,
            "parts": [part["rows"] for part in parts],
            "skipped": {
                "broken": sum(item["broken"] for item in skipped),
                "other": sum(not item["broken"] for item in skipped),
            },
            "notes": _summed(part["notes"] for part in parts),
            "provenance": self.provenance,
        }
        write_json(self.folder / INDEX, index)

    def _write_missing(self, parts: Parts) -> list[dict[str, Any] | None]:
        """Compute missing parts that no other process is computing; returns the descriptions, None for parts in progress."""
        described = []
        for number, make in enumerate(parts()):
            if (part := self.described(number)) is None:
                try:
                    with self._lock(number, timeout=0):
                        part = self.described(number) or self.write(number, make())
                except Timeout:
                    pass
            described.append(part)
        return described

    def _verified_rows(self) -> StoredRows | None:
        """The rows, if the store is complete and all files match their hashes; else None."""
        try:
            rows = StoredRows(self.folder)
        except ValueError:
            return None
        intact = [self.described(number) is not None for number in range(rows.num_parts)]
        return rows if rows.key == self.key and all(intact) else None

    def _lock(self, number: int, timeout: float = -1) -> AbstractContextManager[Any]:
        """Acquire the lock of a part; raises Timeout if another process holds it."""
        with self._writable():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            return FileLock(self.folder / "locks" / f"{number:05d}").acquire(timeout=timeout)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except Timeout:  # Timeout is an OSError, but not an error of the disk
            raise
        except OSError as error:
            raise ValueError(f"{self.field} {self.root} cannot be written: {error.strerror or error}") from error


def _layout(tensor: Tensor) -> list[Any]:
    """Shape of a row, and name of the dtype."""
    return [list(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")]


def _summed(notes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part_notes in notes:
        for name, number in part_notes.items():
            total[name] = total.get(name, 0) + number
    return total


def cache_key(**parts: Any) -> str:
    """16 hex digits of the SHA-256 of everything that determines the content of a store; any JSON values, in any order."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]
