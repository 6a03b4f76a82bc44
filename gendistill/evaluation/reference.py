"""Real images, or any that lie somewhere, as what scores are computed from: read once, kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.images import fitted
from gendistill.data.samples import ImageSource
from gendistill.evaluation.extraction import Advance, Extraction
from gendistill.metrics.features.gaussian import GaussianStatistics, Moments, gaussian_statistics
from gendistill.metrics.metric import ReferenceFeatures, SampleFeatures
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import atomic_write
from gendistill.runtime.hashing import HASHES, HashMemo

Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """What is noted of images as they pass.

    Attributes:
        contents: 16 hex digits of the images' pixels: the same wherever and in whatever format they lie.
        broken: images that could not be decoded, and are in none of the figures.
    """

    captions: list[str]
    contents: str
    broken: int


@dataclass(frozen=True)
class ImageSet:
    """A set of images as numbers.

    Attributes:
        images: their features; None where there are only statistics, or no more is asked for.
        seen: None where there are only statistics.
    """

    statistics: GaussianStatistics
    images: SampleFeatures | None = None
    seen: Seen | None = None

    @property
    def reference(self) -> ReferenceFeatures:
        """What other images are held against."""
        if self.images is None:
            return ReferenceFeatures(self.statistics)
        return ReferenceFeatures(self.statistics, self.images.features, self.images.image_embeddings)


def read_images(
    source: ImageSource,
    extraction: Extraction,
    *,
    square: bool,
    in_memory: bool = True,
    progress: Advance = None,
) -> ImageSet:
    """Features and captions of all images of a source.

    Args:
        square: hold only the centre square of each image, as a model's square images are held against; whole images
            otherwise, as FID is of folders.
        in_memory: without it there are only statistics, and no more than a part of the features is in memory at a time.

    Raises:
        ValueError: fewer than two images can be decoded.
    """
    reading = _Reading(source, extraction, square)
    if in_memory:
        images = reading.through(lambda: extraction.of(reading, source=reading.which, progress=progress))
        return ImageSet(gaussian_statistics(images.features), images, reading.seen())
    moments = Moments()
    rows = reading.through(lambda: extraction.rows(extraction.extractor, reading, reading.which, progress))
    for block in rows.blocks():
        moments.add(block["features"])
    return ImageSet(moments.statistics(), None, reading.seen())


def images_at(source: ImageSource, numbers: Sequence[int], edge: int) -> Tensor:
    """Some of a source's images, by their numbers among those that decode: uint8 (n, 3, edge, edge), centre squares."""
    wanted, found = set(numbers), {}
    for number, sample in enumerate(source):
        if number in wanted:
            found[number] = torch.from_numpy(np.array(fitted(sample.image, edge, edge))).permute(2, 0, 1)
            if len(found) == len(wanted):
                break
    return torch.stack([found[number] for number in numbers])


class _Reading:
    """One source read by some networks, each walking through it where its features are not there."""

    def __init__(self, source: ImageSource, extraction: Extraction, square: bool) -> None:
        self.source, self.square = source, square
        assert extraction.cache is not None
        hashes = HashMemo(extraction.cache / HASHES)
        self.which = ["square" if square else "whole", source.fingerprint(hashes)]
        hashes.keep()
        self._file = extraction.cache / "features" / f"{'-'.join(self.which)}.json"
        self._seen: Seen | None = None  # noted once a walk is through

    def __call__(self) -> Iterator[Image.Image]:
        captions, digest = [], hashlib.sha256()
        for sample in self.source:
            captions.append(sample.caption)
            image = _centre_square(sample.image) if self.square else sample.image
            digest.update(f"{image.size}".encode() + image.tobytes())
            yield image
        self._seen = Seen(captions, digest.hexdigest()[:16], self.source.broken_images)

    def through(self, extract: Callable[[], Result]) -> Result:
        """What `extract` gives; a sentence where there are fewer than two images."""
        try:
            found = extract()
        except ValueError:
            if self._seen is not None:
                self._require_two(self._seen)
            raise
        self._require_two(self.seen())
        return found

    def _require_two(self, seen: Seen) -> None:
        if (count := len(seen.captions)) < 2:
            broken = f"{seen.broken} cannot be decoded"
            raise ValueError(f"images: {self.source.describe()} gives {count} ({broken}); expects at least 2.")

    def seen(self) -> Seen:
        """From a walk of the extraction, or the file that an earlier one left."""
        if self._seen is None:
            try:
                return Seen(**json.loads(self._file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                deque(self(), maxlen=0)  # decodes all
        assert self._seen is not None
        make_folder(self._file.parent)
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self._seen)), encoding="utf-8")
        return self._seen


def _centre_square(image: Image.Image) -> Image.Image:
    edge = min(image.size)
    return image if image.size == (edge, edge) else fitted(image, edge, edge)
