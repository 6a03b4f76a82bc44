"""What training reads, by row: made once and kept in the store, from the images of a source or by number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from gendistill.data.data_config import DataConfig
from gendistill.data.samples import Entry, PictureSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.runtime.hashing import HASHES, HashMemo
from gendistill.runtime.random import indices_of_step
from gendistill.runtime.store import Store, StoredPart
from gendistill.runtime.stored_rows import SKIPPED, StoredRows

Item = TypeVar("Item")
Progress = Callable[[int], None]
PART_SIZE = 256
MAX_BROKEN = 0.05

logger = logging.getLogger(__name__)


def cached_rows(
    cache: str | Path,
    made_by: Mapping[str, Any],
    described: str,
    items: Callable[[], Iterable[Item]],
    make: Callable[[list[Item]], StoredPart],
) -> StoredRows:
    """The rows that `make` makes of `PART_SIZE` items at a time, opened from the store or made into it first.

    Processes that call it at the same time share the work, and all return when it is done.

    Args:
        made_by: everything that decides what the rows are.
        described: one line for people.
        items: walks over all of them, always in the same order.

    Raises:
        ValueError: `data.cache` cannot be written.
    """

    def parts() -> Iterator[Callable[[], StoredPart]]:
        for some in batched(items(), PART_SIZE):
            yield partial(make, some)

    return Store(cache, made_by, described, field="data.cache").build(parts)


def cached_images(
    config: DataConfig, source: PictureSource, made_by: Mapping[str, Any], make: Callable[[list[Entry]], StoredPart]
) -> StoredRows:
    """The rows that `make` makes of a source's images; as `cached_rows`.

    Raises:
        ValueError: more than `MAX_BROKEN` of the images are broken, or none is left.
    """
    hashes = HashMemo(Path(config.cache) / HASHES)
    made_by = {"source": source.fingerprint(hashes), **made_by}
    hashes.keep()
    rows = cached_rows(config.cache, made_by, source.describe(), source.entries, make)
    _warn_of_missing(rows, source)
    return rows


def image_source(config: DataConfig, seed: int) -> PictureSource:
    """The images of `data.path`; ValueError where it is a file of prompts."""
    assert config.path is not None
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; takes pictures")
    return source


class CachedData:
    """What training reads of a cache, by row. Nothing but the rows asked for is in memory."""

    def __init__(self, cache: StoredRows) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 that global step `step` sees, over all processes."""
        return indices_of_step(seed, step, batch_size, len(self))

    def summary(self) -> dict[str, Any]:
        """What there is and what was left out, for a log."""
        cache = self.cache
        return {"rows": len(self), "broken": cache.broken, "left_out": cache.left_out, "cache": cache.key}


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _warn_of_missing(rows: StoredRows, source: PictureSource) -> None:
    """A line about what is not as it should be; ValueError if it is too much."""
    pictures = len(rows) + rows.broken + rows.left_out
    listed = f"they are listed in {rows.folder / SKIPPED}"
    if rows.broken > MAX_BROKEN * pictures:
        raise ValueError(
            f"data: {rows.broken} of {pictures} pictures of {source.describe()} cannot be decoded; it takes at most "
            f"{MAX_BROKEN:.0%}; {listed}."
        )
    if not len(rows):
        raise ValueError(f"data: none of {pictures} pictures of {source.describe()} is left; {listed}.")
    if rows.broken or rows.left_out:
        logger.warning("data: %d of %d pictures are left out; %s", rows.broken + rows.left_out, pictures, listed)
    if missing := rows.notes.get("missing_captions"):
        logger.warning("data: %d of %d pictures have no caption: trained as ''", missing, pictures)
