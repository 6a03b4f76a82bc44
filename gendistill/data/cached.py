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
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.runtime.hashing import HASHES, HashMemo
from gendistill.runtime.random import indices_of_step
from gendistill.runtime.store import Store, StoredPart
from gendistill.runtime.stored_rows import SKIPPED, StoredRows

Item = TypeVar("Item")
Progress = Callable[[int], None]
PART_SIZE = 256
LAYOUT = 2  # of the rows' names; another one makes caches of earlier versions unread, not misread
MAX_BROKEN = 0.05

logger = logging.getLogger(__name__)


def cached_rows(
    cache: str | Path,
    key_parts: Mapping[str, Any],
    described: str,
    items: Callable[[], Iterable[Item]],
    make: Callable[[list[Item]], StoredPart],
) -> StoredRows:
    """The rows that `make` makes of `PART_SIZE` items at a time, opened from the store or made into it first.

    Processes that call it at the same time share the work, and all return when it is done.

    Args:
        key_parts: everything that decides what the rows are.
        described: one line for people.
        items: walks over all of them, always in the same order.

    Raises:
        ValueError: `data.cache` cannot be written.
    """

    def parts() -> Iterator[Callable[[], StoredPart]]:
        for some in batched(items(), PART_SIZE):
            yield partial(make, some)

    return Store(cache, {"layout": LAYOUT, **key_parts}, described, field="data.cache").build(parts)


def cached_images(
    config: DataConfig, source: ImageSource, key_parts: Mapping[str, Any], make: Callable[[list[Entry]], StoredPart]
) -> StoredRows:
    """The rows that `make` makes of a source's images; as `cached_rows`.

    Raises:
        ValueError: more than `MAX_BROKEN` of the images are broken, or none is left.
    """
    hashes = HashMemo(Path(config.cache) / HASHES)
    key_parts = {"source": source.fingerprint(hashes), **key_parts}
    hashes.keep()
    rows = cached_rows(config.cache, key_parts, source.describe(), source.entries, make)
    _warn_of_missing(rows, source)
    return rows


def image_source(config: DataConfig, seed: int) -> ImageSource:
    """The images of `data.path`; ValueError where it is a file of prompts."""
    assert config.path is not None
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; expects images")
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


def _warn_of_missing(rows: StoredRows, source: ImageSource) -> None:
    """A line about what is not as it should be; ValueError if it is too much."""
    images = len(rows) + rows.broken + rows.left_out
    listed = f"they are listed in {rows.folder / SKIPPED}"
    if rows.broken > MAX_BROKEN * images:
        raise ValueError(
            f"data: {rows.broken} of {images} images of {source.describe()} cannot be decoded; it expects at most "
            f"{MAX_BROKEN:.0%}; {listed}."
        )
    if not len(rows):
        raise ValueError(f"data: none of {images} images of {source.describe()} is left; {listed}.")
    if rows.broken or rows.left_out:
        logger.warning("data: %d of %d images are left out; %s", rows.broken + rows.left_out, images, listed)
    if missing := rows.notes.get("missing_captions"):
        logger.warning("data: %d of %d images have no caption: trained as ''", missing, images)
