"""Features extracted once and kept on disk by content, in parts: what was interrupted goes on where it stopped.

    STORE/KEY/00000.npy, 00001.npy, ...   float32 (n, D), PART rows each but the last
    STORE/KEY/features.json               count, D and provenance; written last: without it the features are not all there

Files are written aside and renamed, so two processes that extract the same write the same. They are read in blocks and
without a memory map: the pages of a map count as the process's memory for as long as it is open.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gendistill.metrics.features.extractors import FeatureExtractor
from gendistill.metrics.features.feature_extractor import Picture, Pictures, feature_batches

PART = 1024  # rows: 8 MB of Inception's features


@dataclass(frozen=True)
class Features:
    """Features float32 (N, D) that lie in files or in memory.

    parts: `.npy` files or arrays (n, D), the rows one after the other; lengths: their n; dim: D.
    """

    parts: tuple[Path | NDArray[np.float32], ...]
    lengths: tuple[int, ...]
    dim: int

    @classmethod
    def of(cls, features: torch.Tensor | NDArray[np.floating]) -> "Features":
        """Features that are in memory; ValueError if they are not (N, D)."""
        array = np.asarray(features, np.float32)
        if array.ndim != 2:
            raise ValueError(f"features: got shape {array.shape}, takes (N, D).")
        return cls((array,), (len(array),), array.shape[1])

    def __len__(self) -> int:
        return sum(self.lengths)

    def blocks(self, rows: int = PART) -> Iterator[NDArray[np.float32]]:
        """All rows in order, float32 (n, D) with n <= `rows`; no more than one block and one part are in memory."""
        for part in self.parts:
            array = _read(part)
            for first in range(0, len(array), rows):
                yield array[first : first + rows]

    def array(self) -> NDArray[np.float32]:
        """All of them in memory, (N, D)."""
        if len(self.parts) == 1:
            return _read(self.parts[0])
        out = np.empty((len(self), self.dim), np.float32)
        first = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            out[first : first + length] = _read(part)
            first += length
        return out

    def rows(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """The rows `indices` (n,), in any order and as often as they are named, (n, D); each part is read once.

        Raises:
            IndexError: an index is not in [0, N).
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"indices: got {wanted.min()} to {wanted.max()}, takes 0 to {len(self) - 1}.")
        ends = np.cumsum(self.lengths)
        of_part = np.searchsorted(ends, wanted, side="right")
        out = np.empty((len(wanted), self.dim), np.float32)
        for number in np.unique(of_part):
            here = of_part == number
            out[here] = _read(self.parts[number])[wanted[here] - (ends[number] - self.lengths[number])]
        return out


class FeatureStore:
    """Features on disk under the fingerprint of their pictures and the protocol of their extractor.

    Args:
        folder: where they lie; made when there is something to keep.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def features(
        self,
        *source: str | int | float,
        extractor: FeatureExtractor,
        make: Callable[[], Pictures],
        batch_size: int = 64,
        progress: Callable[[int], object] | None = None,
    ) -> Features:
        """The features of the pictures that `source` stands for; extracted where they are not there yet.

        Args:
            source: what says which pictures these are: a content fingerprint, a model with its seeds and prompts.
            make: opens the pictures, whatever `extract` takes, always the same in the same order. It is not called if
                the features are there. After an interruption it is called anew, and the pictures whose features are
                kept already are passed over.
            progress: called with the number of pictures done so far, those that were kept among them.

        Raises:
            ValueError: as `extract`; or the disk does not take the features.
        """
        key = self._key(source, extractor)
        folder = self.folder / key
        found = _complete(folder)
        if found is not None:
            return found
        parts, lengths = _parts(folder, extractor.dim)
        if lengths and lengths[-1] != PART:  # the last part of an earlier run that ended before the file that says so
            parts, lengths = parts[:-1], lengths[:-1]
        done = sum(lengths)

        def report(count: int) -> None:
            if progress is not None:
                progress(done + count)

        batches = feature_batches(extractor, _without_first(make(), done), batch_size, report)
        for rows in _in_parts(batch.numpy() for batch in batches):
            parts.append(folder / f"{len(parts):05}.npy")
            lengths.append(len(rows))
            _write(parts[-1], rows)
        if not lengths:
            raise ValueError("images: got none, takes at least one picture.")
        about = {
            "count": sum(lengths),
            "dim": extractor.dim,
            "lengths": lengths,
            "source": list(source),
            "extractor": extractor.name,
            "weights_hash": extractor.weights_hash,
            "resize": extractor.resize,
        }
        _write(folder / "features.json", json.dumps(about, indent=1) + "\n")
        return Features(tuple(parts), tuple(lengths), extractor.dim)

    def _key(self, source: Sequence[str | int | float], extractor: FeatureExtractor) -> str:
        """Hashed as JSON, so that ("a", "bc") and ("ab", "c") differ."""
        parts = [list(source), extractor.name, extractor.weights_hash, extractor.resize, extractor.dim]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _complete(folder: Path) -> Features | None:
    """What `features.json` tells of, if all of it is there; None if anything is missing or damaged."""
    try:
        about: dict[str, Any] = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        parts, lengths = _parts(folder, about["dim"])
        if lengths[: len(about["lengths"])] != about["lengths"]:
            return None
        count = len(about["lengths"])
        return Features(tuple(parts[:count]), tuple(lengths[:count]), about["dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parts(folder: Path, dim: int) -> tuple[list[Path], list[int]]:
    """The parts from the first to the last before one that is missing or damaged, and their lengths."""
    parts: list[Path] = []
    lengths: list[int] = []
    while (length := _length(part := folder / f"{len(parts):05}.npy", dim)) is not None:
        parts.append(part)
        lengths.append(length)
    return parts, lengths


def _length(part: Path, dim: int) -> int | None:
    """Rows of a part by its header and its size; None if there is no such part, or it is cut short."""
    try:
        with part.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        sound = dtype == np.float32 and len(shape) == 2 and shape[1] == dim
        return shape[0] if sound and part.stat().st_size == start + 4 * shape[0] * dim else None
    except (OSError, ValueError):
        return None


def _read(part: Path | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.load(part, allow_pickle=False) if isinstance(part, Path) else part


def _in_parts(batches: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The rows of `batches` (n, D), `PART` at a time."""
    waiting: list[NDArray[np.float32]] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        while count >= PART:
            rows = np.concatenate(waiting)
            yield rows[:PART]
            waiting, count = [rows[PART:]], len(rows) - PART
    if count:
        yield np.concatenate(waiting)


def _without_first(pictures: Pictures, count: int) -> Pictures:
    if count == 0:
        return pictures
    if isinstance(pictures, torch.Tensor):
        return pictures[count:]
    return _rest(pictures, count)


def _rest(pictures: Iterable[torch.Tensor] | Iterable[Picture], count: int) -> Iterator[Any]:
    for item in pictures:
        length = len(item) if isinstance(item, torch.Tensor) else 1
        if count < length:
            yield item[count:] if isinstance(item, torch.Tensor) else item
        count -= min(count, length)


def _write(final: Path, content: NDArray[np.float32] | str) -> None:
    """Under a name of this writer's own first, so that `final` is there whole or not at all."""
    aside = final.with_name(f".{uuid.uuid4().hex}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                np.save(file, np.ascontiguousarray(content, np.float32), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, final)
    except OSError as error:
        raise ValueError(f"features: {final} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
