"""Making a cache: part by part, by as many processes as ask for it, and only what is not there yet.

Every process walks all parts in order. It makes those that are neither there nor being made: a lock a part says who makes
it, so no two processes write the same file, and what is in a part does not depend on who made it. A process that is killed
leaves whole parts behind and no lock; whoever comes next makes the rest.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from gendistill.data.cache.row_cache import Cache, Part, described_part, write_index, write_part
from gendistill.runtime.hashing import HashMemo

logger = logging.getLogger(__name__)

Parts: TypeAlias = Callable[[], Iterator[Callable[[], Part]]]
"""A walk over all parts in order; each is made when it is called."""

HASHES = "hashes.json"


def build_or_open(folder: Path, key: str, provenance: Mapping[str, Any], parts: Parts) -> Cache:
    """Open the cache `folder/key`, after making what is missing or damaged of it.

    Args:
        folder: of all caches.
        key: from `cache_key`.
        provenance: how the cache is made, for people; anything JSON holds.
        parts: always the same parts for the same key.

    Raises:
        ValueError: the folder cannot be written.
    """
    here = Path(folder) / key
    provenance = json.loads(json.dumps(provenance))  # now, not after hours of encoding
    hashes = HashMemo(Path(folder) / HASHES)
    if (cache := _sound(here, key, hashes)) is None:
        described: list[dict[str, Any] | None] = [None]
        while None in described:
            described = _walk(here, parts, hashes)
            for number, part in enumerate(described):
                if part is None:  # another process makes it: wait until it is done or gone
                    with _locked(here, number):
                        described[number] = _described(here, number, hashes)
        write_index(here, [part for part in described if part], key, provenance)
        cache = Cache.open(here)
    hashes.keep()
    return cache


def _walk(here: Path, parts: Parts, hashes: HashMemo) -> list[dict[str, Any] | None]:
    """Make every part that is not there and that nobody else makes; what describes each, None for the others'."""
    described = []
    for number, make in enumerate(parts()):
        if (part := _described(here, number, hashes)) is None:
            try:
                with _locked(here, number, timeout=0):
                    part = _described(here, number, hashes) or write_part(here, number, make())
            except Timeout:
                pass
        described.append(part)
    return described


def _sound(here: Path, key: str, hashes: HashMemo) -> Cache | None:
    """The cache, if it is complete and every file of it is what was written."""
    try:
        cache = Cache.open(here)
    except ValueError:
        return None
    sound = [_described(here, number, hashes) is not None for number in range(cache.num_parts)]
    return cache if cache.key == key and all(sound) else None


def _described(here: Path, number: int, hashes: HashMemo) -> dict[str, Any] | None:
    try:
        return described_part(here, number, hashes)
    except ValueError as error:
        logger.warning("%s It is made again.", error)
        return None


def _locked(here: Path, number: int, timeout: float = -1) -> AbstractContextManager[Any]:
    """The lock of a part, held; Timeout if another process holds it."""
    try:
        (here / "locks").mkdir(parents=True, exist_ok=True)
        return FileLock(here / "locks" / f"{number:05d}").acquire(timeout=timeout)
    except Timeout:
        raise
    except OSError as error:
        raise ValueError(f"data.cache {here.parent} cannot be written: {error.strerror or error}") from error
