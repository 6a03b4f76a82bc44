"""Cached training data by row: computed once from the images of a source or from row numbers, and kept on disk."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from gendistill.data.data_config import DataConfig
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.data.sources.triggered import TriggeredImages
from gendistill.runtime.hashing import HASHES, HashMemo
from gendistill.runtime.random import indices_of_step
from gendistill.runtime.store import Store, StoredPart
from gendistill.runtime.stored_rows import SKIPPED, StoredRows
from gendistill.samplers.provenance import provenance

Item = TypeVar("Item")
Progress = Callable[[int], None]
PART_SIZE = 256
LAYOUT = 2  # version of the rows' names: a new version ignores the caches of earlier versions
MAX_BROKEN = 0.05

logger = logging.getLogger(__name__)


class RowMaker(ABC, Generic[Item]):
    """Computes the rows of a cache from items.

    A subclass is a dataclass. Its fields are all inputs of `items` and `make`, and the key of the cache is the provenance of
    these fields (`samplers.provenance`), so that no input can be missing from the key. What has no influence on the rows, such
    as a cache folder or a progress bar, is no field.
    """

    @property
    @abstractmethod
    def described(self) -> str:
        """One line about the rows for logs and model cards, which is not part of the key."""

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """All items, always in the same order."""

    @abstractmethod
    def make(self, items: list[Item], progress: Progress | None) -> StoredPart:
        """The rows of at most `PART_SIZE` items; reports the number of samples after each batch."""

    def key_parts(self, hashes: HashMemo | None = None) -> dict[str, Any]:
        """Everything that determines the rows, as JSON values."""
        return {"rows": type(self).__name__, **provenance(vars(self))}


class ImageRowMaker(RowMaker[Entry]):
    """Computes rows from the images of `source`."""

    source: ImageSource

    @property
    def described(self) -> str:
        return self.source.describe()

    def items(self) -> Iterable[Entry]:
        return self.source.entries()

    def key_parts(self, hashes: HashMemo | None = None) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "source"}
        return {"rows": type(self).__name__, "source": self.source.fingerprint(hashes), **provenance(fields)}


def cached_rows(cache: str | Path, maker: RowMaker[Any], progress: Progress | None = None) -> StoredRows:
    """The rows of `maker`, read from the cache or computed and written to it first.

    Processes that call this at the same time share the work and return when all rows are there.

    Raises:
        ValueError: `data.cache` cannot be written.
    """
    hashes = HashMemo(Path(cache).expanduser() / HASHES)
    key_parts = maker.key_parts(hashes)
    hashes.keep()

    def parts() -> Iterator[Callable[[], StoredPart]]:
        for batch in batched(maker.items(), PART_SIZE):
            yield partial(maker.make, batch, progress)

    return Store(cache, {"layout": LAYOUT, **key_parts}, maker.described, field="data.cache").build(parts)


def cached_images(cache: str | Path, maker: ImageRowMaker, progress: Progress | None = None) -> StoredRows:
    """The rows of `maker`; see `cached_rows`.

    Raises:
        ValueError: more than the fraction `MAX_BROKEN` of the images cannot be decoded, or no image is left.
    """
    rows = cached_rows(cache, maker, progress)
    _warn_of_missing(rows, maker.source)
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
    return source if config.trigger is None else TriggeredImages(source, config.trigger)


class CachedData:
    """Training data of a cache by row. Only the requested rows are in memory."""

    def __init__(self, cache: StoredRows) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def fingerprint(self) -> str:
        return self.cache.key

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
    """Log the numbers of skipped and enlarged images and missing captions; raise ValueError if too many images were skipped."""
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
    if enlarged := rows.notes.get("enlarged"):
        logger.warning(
            "data: %d of %d images are smaller than the teacher's and are enlarged, which may make students blurry; larger "
            "images, or data.prompts alone, do not",
            enlarged,
            images,
        )
