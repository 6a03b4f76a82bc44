"""What is computed once and kept on disk: parts of named tensors, under a key of everything that made them.

    folder/KEY/rows-00000.safetensors   the tensors of one part
    folder/KEY/rows-00000.json          their shapes, the file's SHA-256, numbers beside them, and what was left out
    folder/KEY/index.json               all parts together and how they were made; written last: without it the store
                                        is incomplete
    folder/KEY/skipped.jsonl            the items that were left out, and why

Every process walks all parts in order. It makes those that are neither there nor being made: a lock for each part says
who makes it, so no two processes write the same file, and what is in a part does not depend on who made it. A process
that is killed leaves finished parts behind and no lock; the next one makes the rest. Every file is written under a
temporary name, flushed and renamed, so that what has its final name is complete.

Three things are kept so: the rows that training reads (`data.cached`), the features of images (`evaluation.feature_cache`)
and the images of a model (`evaluation.image_cache`).
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

from gendistill.runtime.files import atomic_write, canonical_json, read_json, write_json
from gendistill.runtime.hashing import HASHES, HashMemo
from gendistill.runtime.stored_rows import FORMAT, INDEX, SKIPPED, StoredRows, part_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """An item that was left out, and why; `broken` where its bytes are at fault."""

    key: str
    reason: str
    broken: bool = True


@dataclass(frozen=True)
class StoredPart:
    """What one file of a store is made of.

    Attributes:
        groups: tensors (n, ...) by name, of one shape within a group; a group of no rows is left out.
        skipped: what was left out.
        notes: numbers beside the rows, which are added up over all parts.
    """

    groups: Mapping[str, Mapping[str, Tensor]]
    skipped: list[Skipped] = field(default_factory=list)
    notes: Mapping[str, float] = field(default_factory=dict)


Parts: TypeAlias = Callable[[], Iterator[Callable[[], StoredPart]]]
"""A walk over all parts in order; each is made when it is called. Always the same parts for the same key."""


class Store:
    """The parts under one key.

    Args:
        root: the folder of all stores; made when there is something to keep.
        key_parts: everything that decides what is in it; any JSON values.
        described: how it was made, in a line for people, which is no part of the key.
        field: the option that named `root`, for errors.
    """

    def __init__(self, root: Path | str, key_parts: Mapping[str, Any], described: str = "", field: str = "cache") -> None:
        self.root, self.field = Path(root).expanduser(), field
        self.key = cache_key(**key_parts)
        self.folder = self.root / self.key
        self.provenance = json.loads(canonical_json({**key_parts, "described": described}))
        self._hashes = HashMemo(self.root / HASHES)

    def build(self, parts: Parts) -> StoredRows:
        """Open the store, after making what is missing or damaged of it.

        Raises:
            ValueError: the folder cannot be written, or parts differ in the shapes or dtypes of a group.
        """
        if (rows := self._sound()) is None:
            described: list[dict[str, Any] | None] = [None]
            while None in described:
                described = self._walk(parts)
                for number, part in enumerate(described):
                    if part is None:  # another process makes it: wait until it is done or gone
                        with self._locked(number):
                            described[number] = self.described(number)
            self.complete([part for part in described if part])
            rows = StoredRows(self.folder)
        self._hashes.keep()
        return rows

    def write(self, part: int | str, content: StoredPart) -> dict[str, Any]:
        """Write a part: its tensors, then what describes them, which is returned.

        Raises:
            ValueError: the disk does not take it, or the tensors of a group have different numbers of rows.
        """
        for group, tensors in content.groups.items():
            if len({len(tensor) for tensor in tensors.values()}) != 1:
                sizes = {name: len(tensor) for name, tensor in tensors.items()}
                raise ValueError(f"rows: got {sizes} rows of {group!r}; it expects the same number in every tensor.")
        data = save(
            {
                f"{group}/{name}": tensor.detach().cpu().contiguous()
                for group, of_group in content.groups.items()
                for name, tensor in of_group.items()
            }
        )
        described = {
            "rows": {group: len(next(iter(tensors.values()))) for group, tensors in content.groups.items()},
            "tensors": {
                group: {name: [list(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch.")] for name, tensor in of.items()}
                for group, of in content.groups.items()
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
        """The tensors of a part by `group/name`; None if it is not there or not what was written."""
        file = part_file(self.folder, part)
        try:
            sha256, data = read_json(file.with_suffix(".json"))["sha256"], file.read_bytes()
        except (OSError, ValueError):
            return None
        return load(data) if hashlib.sha256(data).hexdigest() == sha256 else None

    def described(self, part: int | str) -> dict[str, Any] | None:
        """What describes a part; None if it is not there, or not what was written: then it counts as not there from now on."""
        file = part_file(self.folder, part)
        try:
            described = read_json(file.with_suffix(".json"))
        except (OSError, ValueError):
            return None
        if file.is_file() and self._hashes.sha256(file) == described["sha256"]:
            return described
        file.with_suffix(".json").unlink(missing_ok=True)
        logger.warning("cache: %s is damaged; it expects sha256 %s. It is made again.", file, described["sha256"])
        return None

    def notes(self) -> dict[str, float]:
        """The numbers beside the parts that are there, complete or not, added up."""
        found = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(OSError, ValueError):
                found.append(read_json(file.with_suffix(".json"))["notes"])
        return _added(found)

    def complete(self, parts: Sequence[dict[str, Any]]) -> None:
        """Write the index over parts 0 to the last, as `write` describes them.

        Raises:
            ValueError: parts differ in the shapes or dtypes of a group.
        """
        tensors: dict[str, Any] = {}
        for part in parts:
            for group, of_group in part["tensors"].items():
                if tensors.setdefault(group, of_group) != of_group:
                    raise ValueError(f"rows: got {of_group} of {group!r}; it expects {tensors[group]}, as in the first rows.")
        skipped = [line for part in parts for line in part["skipped"]]
        with atomic_write(self.folder / SKIPPED) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in skipped), encoding="utf-8")
        index = {
            "format": FORMAT,
            "key": self.key,
            "tensors": tensors,
            "parts": [part["rows"] for part in parts],
            "skipped": {"broken": sum(of["broken"] for of in skipped), "other": sum(not of["broken"] for of in skipped)},
            "notes": _added(part["notes"] for part in parts),
            "provenance": self.provenance,
        }
        write_json(self.folder / INDEX, index)

    def _walk(self, parts: Parts) -> list[dict[str, Any] | None]:
        """Make every part that is not there and that nobody else makes; what describes each, None for the others'."""
        described = []
        for number, make in enumerate(parts()):
            if (part := self.described(number)) is None:
                try:
                    with self._locked(number, timeout=0):
                        part = self.described(number) or self.write(number, make())
                except Timeout:
                    pass
            described.append(part)
        return described

    def _sound(self) -> StoredRows | None:
        """The rows, if they are complete and every file is what was written."""
        try:
            rows = StoredRows(self.folder)
        except ValueError:
            return None
        sound = [self.described(number) is not None for number in range(rows.num_parts)]
        return rows if rows.key == self.key and all(sound) else None

    def _locked(self, number: int, timeout: float = -1) -> AbstractContextManager[Any]:
        """The lock of a part, held; Timeout if another process holds it."""
        with self._writable():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            return FileLock(self.folder / "locks" / f"{number:05d}").acquire(timeout=timeout)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except Timeout:  # an OSError too, and no fault of the disk
            raise
        except OSError as error:
            raise ValueError(f"{self.field} {self.root} cannot be written: {error.strerror or error}") from error


def _added(notes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for some in notes:
        for name, number in some.items():
            total[name] = total.get(name, 0) + number
    return total


def cache_key(**parts: Any) -> str:
    """16 hex digits of the SHA-256 of everything that decides what is in a store; any JSON value, in any order."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]
