"""Real pictures, or any that lie somewhere, as what scores are computed from: read once, kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.images import fitted
from gendistill.data.samples import PictureSource, Sample
from gendistill.evaluation.extraction import Extraction, Progress
from gendistill.metrics.features.gaussian import GaussianStatistics, Moments, gaussian_statistics
from gendistill.metrics.metric import ReferenceFeatures, SampleFeatures
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import written_aside
from gendistill.runtime.hashing import HASHES, HashMemo

Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """What is noted of pictures as they pass.

    Attributes:
        contents: 16 hex digits of the pictures' pixels: the same wherever and in whatever format they lie.
        broken: pictures that could not be decoded, and are in none of the figures.
    """

    captions: list[str]
    contents: str
    broken: int


@dataclass(frozen=True)
class RealPictures:
    """The pictures of a source as features, and what else was seen of them."""

    reference: ReferenceFeatures
    pictures: SampleFeatures
    seen: Seen


def read_reference(
    source: PictureSource, extraction: Extraction, *, square: bool, progress: Progress | None = None
) -> RealPictures:
    """Features and captions of all pictures of a source.

    Args:
        square: hold only the centre square of each picture, as a model's square pictures are held against; whole pictures
            otherwise, as FID is of folders.

    Raises:
        ValueError: fewer than two pictures can be decoded.
    """
    reading = _Reading(source, extraction, square)
    pictures = reading.through(lambda: extraction.of(reading.make, source=reading.which, progress=progress))
    statistics = gaussian_statistics(pictures.features)
    return RealPictures(ReferenceFeatures(statistics, pictures.features, pictures.image_embeddings), pictures, reading.seen())


def read_statistics(
    source: PictureSource, extraction: Extraction, *, progress: Progress | None = None
) -> tuple[GaussianStatistics, Seen]:
    """Mean and covariance of whole pictures' features, of which no more than a part is in memory at a time.

    Raises:
        ValueError: fewer than two pictures can be decoded.
    """
    reading = _Reading(source, extraction, square=False)
    blocks = reading.through(lambda: extraction.blocks(reading.make, source=reading.which, progress=progress))
    moments = Moments()
    for block in blocks:
        moments.add(block)
    return moments.statistics(), reading.seen()


def pictures_at(source: PictureSource, numbers: Sequence[int], edge: int) -> Tensor:
    """Some of a source's pictures, by their numbers among those that decode: uint8 (n, 3, edge, edge), centre squares."""
    wanted, found = set(numbers), {}
    for number, sample in enumerate(source):
        if number in wanted:
            found[number] = torch.from_numpy(np.array(fitted(sample.picture, edge, edge))).permute(2, 0, 1)
            if len(found) == len(wanted):
                break
    return torch.stack([found[number] for number in numbers])


class _Walk:
    """Passes the pictures of a source on and notes what it sees."""

    def __init__(self, source: PictureSource, square: bool) -> None:
        self.source, self.square = source, square
        self.captions: list[str] = []
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Image.Image]:
        for sample in self.source:
            self.captions.append(sample.caption)
            picture = _centre_square(sample) if self.square else sample.picture
            self._digest.update(f"{picture.size}".encode() + picture.tobytes())
            yield picture

    @property
    def seen(self) -> Seen:
        """After all have passed."""
        return Seen(self.captions, self._digest.hexdigest()[:16], self.source.broken_pictures)


class _Reading:
    """One source read by some networks, each walking through it where its features are not there."""

    def __init__(self, source: PictureSource, extraction: Extraction, square: bool) -> None:
        self.source, self.square = source, square
        self.which = ["square" if square else "whole", _fingerprint(source, extraction.cache)]
        self._file = None if extraction.cache is None else extraction.cache / "features" / f"{'-'.join(self.which)}.json"
        self._walks: list[_Walk] = []

    def make(self) -> Iterator[Image.Image]:
        self._walks.append(_Walk(self.source, self.square))
        return iter(self._walks[-1])

    def through(self, extract: Callable[[], Result]) -> Result:
        """What `extract` gives; a sentence where there are fewer than two pictures."""
        try:
            found = extract()
        except ValueError as error:
            if self._walks and len(self._walks[-1].captions) < 2:
                raise ValueError(_too_few(self.source, len(self._walks[-1].captions))) from error
            raise
        if len(captions := self.seen().captions) < 2:
            raise ValueError(_too_few(self.source, len(captions)))
        return found

    def seen(self) -> Seen:
        """From a walk of the extraction, or the file that an earlier one left."""
        if not self._walks:
            try:
                return Seen(**json.loads(self._file.read_text(encoding="utf-8")))  # type: ignore[union-attr]
            except (OSError, ValueError, TypeError):
                deque(self.make(), maxlen=0)  # decodes all
        seen = self._walks[0].seen
        if self._file is not None:
            make_folder(self._file.parent)
            with written_aside(self._file) as aside:
                aside.write_text(json.dumps(dataclasses.asdict(seen)), encoding="utf-8")
        return seen


def _too_few(source: PictureSource, count: int) -> str:
    return f"pictures: {source.describe()} gives {count} ({source.broken_pictures} cannot be decoded); takes at least 2."


def _centre_square(sample: Sample) -> Image.Image:
    edge = min(sample.picture.size)
    return sample.picture if sample.picture.size == (edge, edge) else fitted(sample.picture, edge, edge)


def _fingerprint(source: PictureSource, cache: Path | None) -> str:
    if cache is None:
        return source.fingerprint()
    hashes = HashMemo(cache / HASHES)
    fingerprint = source.fingerprint(hashes)
    hashes.keep()
    return fingerprint
