"""A cache of image features in the store: an interrupted extraction resumes where it stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gendistill.metrics.features.extractors import FeatureExtractor
from gendistill.metrics.features.feature_extractor import ImageLike, Images, extract
from gendistill.runtime.store import Store, StoredPart
from gendistill.runtime.stored_rows import StoredRows

PART = 1024  # images: 8 MB of Inception's features


def cached_features(
    root: Path,
    source: Sequence[str | int | float],
    extractor: FeatureExtractor,
    make: Callable[[], Images],
    *,
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
) -> StoredRows:
    """The features of the images that `source` identifies; missing ones are extracted.

    Args:
        source: identifies the images: a content fingerprint, or a model with its seeds and prompts.
        make: opens the images, in any form that `extract` accepts, always in the same order. It is not called if all features
            are cached. After an interruption it is called again, and images with cached features are skipped.
        progress: called with the number of images processed so far, including cached ones.

    Returns:
        Rows of `features` (D,) float32.

    Raises:
        ValueError: raised by `extract`, or the features cannot be written.
    """
    key_parts = {
        "source": list(source),
        "extractor": extractor.name,
        "weights_hash": extractor.weights_hash,
        "resize": extractor.resize,
        "dim": extractor.dim,
    }

    def parts() -> Iterator[Callable[[], StoredPart]]:
        done, items = 0, _items(make(), batch_size)
        for first in items:
            part = _Counted(chain([first], items))

            def features(part: _Counted = part, done: int = done) -> StoredPart:
                report = None if progress is None else lambda count: progress(done + count)
                return StoredPart({"features": {"features": extract(extractor, part, batch_size, report)}})

            yield features
            deque(part, maxlen=0)  # skips images of a cached part
            done += part.count
        if not done:
            raise ValueError("images: got none, expects at least one image.")

    return Store(root, key_parts, f"features of {extractor.name}").build(parts)


def _items(images: Images, batch_size: int) -> Iterator[torch.Tensor | ImageLike]:
    yield from images.split(batch_size) if isinstance(images, torch.Tensor) else images


class _Counted:
    """The next items, batches (B, 3, H, W) or single images, with `PART` images in total, and their count."""

    def __init__(self, items: Iterator[torch.Tensor | ImageLike]) -> None:
        self.items, self.count = items, 0

    def __iter__(self) -> Iterator[Any]:
        while self.count < PART and (item := next(self.items, None)) is not None:
            self.count += len(item) if isinstance(item, torch.Tensor) else 1
            yield item
