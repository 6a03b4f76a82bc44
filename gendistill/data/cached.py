"""Cached training data by row: computed once from the images of a source or from row numbers, and kept on disk."""

from __future__ import annotations

import json
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
LAYOUT = 2  # version of the rows' names: a new version ignores the caches of earlier versions
MAX_BROKEN = 0.05

logger = logging.getLogger(__name__)


def cached_rows(
    cache: str | Path,
    key_parts: Mapping[str, Any],
    described: str,
    items: Callable[[], Iterable[Item]],
    make: Callable[[list[Item]], StoredPart],
) -> StoredRows:
    """The rows that `make` computes from `PART_SIZE` items at a time, read from the cache or written to it first.

    Processes that call this at the same time share the work and return when all rows are there.

    Args:
        key_parts: everything that determines the content of the rows.
        described: one line about the rows for logs and model cards.
        items: returns an iterable over all items, always in the same order.

    Raises:
        ValueError: `data.cache` cannot be written.
    """

    def parts() -> Iterator[Callable[[], StoredPart]]:
        for batch in batched(items(), PART_SIZE):
            yield partial(make, batch)

    return Store(cache, {"layout": LAYOUT, **key_parts}, described, field="data.cache").build(parts)


def cached_images(
    config: DataConfig, source: ImageSource, key_parts: Mapping[str, Any], make: Callable[[list[Entry]], StoredPart]
) -> StoredRows:
    """The rows that `make` computes from the images of a source; see `cached_rows`.

    Raises:
        ValueError: more than the fraction `MAX_BROKEN` of the images cannot be decoded, or no image is left.
    """
    hashes = HashMemo(Path(config.cache) / HASHES)
    key_parts = {"source": source.fingerprint(hashes), **key_parts}
    hashes.keep()
    rows = cached_rows(config.cache, key_parts, source.describe(), source.entries, make)
    _warn_of_missing(rows, source)
    return rows


def image_source(config: DataConfig, seed: int, classes: Callable[[set[str]], bool] | None = None) -> ImageSource:
    """The images of `data.path`.

    Args:
        classes: whether texts are names of the teacher's classes, for a teacher that has classes: without `data.caption`, the
            caption is the field that names them.

    Raises:
        ValueError: it is a prompt file, or holds no images.
    """
    assert config.path is not None
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; expects images, or --prompts for a file of prompts")
    if classes is not None and config.caption is None:
        first = next((source.caption_of(entry) for entry in source.entries()), "")
        if not classes({first}) and (field := source.field_of(classes)) is not None:
            return image_source(config.model_copy(update={"caption": field}), seed)
    return source


class CachedData:
    """Training data of a cache by row. Only the requested rows are in memory."""

    def __init__(self, cache: StoredRows) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 of global step `step`, of all processes together."""
        return indices_of_step(seed, step, batch_size, len(self))

    def summary(self) -> dict[str, Any]:
        """Numbers of rows and of skipped images, for the log."""
        cache = self.cache
        return {"rows": len(self), "broken": cache.broken, "left_out": cache.left_out, "cache": cache.key}


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last list may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _example(rows: StoredRows) -> str:
    """The first skipped image and the reason, for a message."""
    lines = (rows.folder / SKIPPED).read_text(encoding="utf-8").splitlines()
    skipped = min(map(json.loads, lines), key=lambda line: not line["broken"], default=None)
    return "" if skipped is None else f", such as {skipped['key']}: {skipped['reason'].removeprefix('image: ').rstrip('.')}"


def _warn_of_missing(rows: StoredRows, source: ImageSource) -> None:
    """Log the numbers of skipped images and missing captions; raise ValueError if too many images were skipped."""
    images = len(rows) + rows.broken + rows.left_out
    listed = f"they are listed in {rows.folder / SKIPPED}{_example(rows)}"
    if rows.broken > MAX_BROKEN * images:
        raise ValueError(
            f"data: {rows.broken} of {images} images of {source.describe()} cannot be decoded; expects at most "
            f"{MAX_BROKEN:.0%}; {listed}."
        )
    if not len(rows):
        raise ValueError(f"data: none of {images} images of {source.describe()} is left; {listed}.")
    if rows.broken or rows.left_out:
        logger.warning("data: %d of %d images are left out; %s", rows.broken + rows.left_out, images, listed)
    if missing := rows.notes.get("missing_captions"):
        logger.warning("data: %d of %d images have no caption: trained as ''", missing, images)
