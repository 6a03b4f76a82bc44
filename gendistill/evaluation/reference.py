"""Features, captions and statistics of stored images, such as the real ones of an evaluation: read once, cached on disk."""

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
class ImageMetadata:
    """Captions, a hash and the number of broken images of a source, collected while its images are read.

    Attributes:
        contents: 16 hex digits of a hash of the pixels: independent of the images' place and file format.
        broken: number of images that could not be decoded; no score includes them.
        seen: see `ImageSource`.
    """

    captions: list[str]
    contents: str
    broken: int
    seen: str = ""


@dataclass(frozen=True)
class ImageSet:
    """Features and statistics of a set of images.

    Attributes:
        images: features of the images; None where only statistics are available or requested.
        metadata: None for saved statistics.
    """

    statistics: GaussianStatistics
    images: SampleFeatures | None = None
    metadata: ImageMetadata | None = None

    @property
    def reference(self) -> ReferenceFeatures:
        """The set as the reference of other images."""
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
        square: crop each image to its centre square, for a comparison with the square images of a model; full images
            otherwise, as FID of image folders is defined.
        in_memory: False returns statistics only and holds one part of the features in memory at a time.

    Raises:
        ValueError: fewer than two images can be decoded.
    """
    reader = _SourceReader(source, extraction, square)
    if in_memory:
        images = reader.run(lambda: extraction.extract(reader, source=reader.key_parts, progress=progress))
        return ImageSet(gaussian_statistics(images.features), images, reader.metadata())
    moments = Moments()
    rows = reader.run(lambda: extraction.rows(extraction.extractor, reader, reader.key_parts, progress))
    for block in rows.blocks():
        moments.add(block["features"])
    return ImageSet(moments.statistics(), None, reader.metadata())


def images_at(source: ImageSource, numbers: Sequence[int], edge: int) -> Tensor:
    """Images of a source by their indices among its decodable images: centre squares, uint8 (n, 3, edge, edge)."""
    wanted, images = set(numbers), {}
    for number, sample in enumerate(source):
        if number in wanted:
            images[number] = torch.from_numpy(np.array(fitted(sample.image, edge, edge))).permute(2, 0, 1)
            if len(images) == len(wanted):
                break
    return torch.stack([images[number] for number in numbers])


class _SourceReader:
    """An image source that each feature network iterates over unless its features are cached."""

    def __init__(self, source: ImageSource, extraction: Extraction, square: bool) -> None:
        self.source, self.square = source, square
        assert extraction.cache is not None
        hashes = HashMemo(extraction.cache / HASHES)
        self.key_parts = ["square" if square else "whole", source.fingerprint(hashes)]
        hashes.keep()
        self._file = extraction.cache / "features" / f"{'-'.join(self.key_parts)}.json"
        self._metadata: ImageMetadata | None = None  # set at the end of an iteration

    def __call__(self) -> Iterator[Image.Image]:
        captions, digest = [], hashlib.sha256()
        for sample in self.source:
            captions.append(sample.caption)
            image = _centre_square(sample.image) if self.square else sample.image
            digest.update(f"{image.size}".encode() + image.tobytes())
            yield image
        self._metadata = ImageMetadata(captions, digest.hexdigest()[:16], self.source.broken_images, self.source.seen)

    def run(self, extract: Callable[[], Result]) -> Result:
        """The result of `extract`; ValueError if the source has fewer than two images."""
        try:
            result = extract()
        except ValueError:
            if self._metadata is not None:
                self._require_two(self._metadata)
            raise
        self._require_two(self.metadata())
        return result

    def _require_two(self, metadata: ImageMetadata) -> None:
        if (count := len(metadata.captions)) < 2:
            broken = f"{metadata.broken} cannot be decoded"
            raise ValueError(f"images: {self.source.describe()} gives {count} ({broken}); expects at least 2.")

    def metadata(self) -> ImageMetadata:
        """The metadata of this extraction, or of the file that an earlier one saved."""
        if self._metadata is None:
            try:
                return ImageMetadata(**json.loads(self._file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                deque(self(), maxlen=0)  # decodes all images
        assert self._metadata is not None
        make_folder(self._file.parent)
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self._metadata)), encoding="utf-8")
        return self._metadata


def _centre_square(image: Image.Image) -> Image.Image:
    edge = min(image.size)
    return image if image.size == (edge, edge) else fitted(image, edge, edge)
