"""What a source of images gives: entries as they lie there, samples decoded in threads ahead of whoever takes them."""

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from gendistill.data.images import decode_image
from gendistill.data.sources.captions import CaptionChoice
from gendistill.runtime.hashing import HashMemo, update
from gendistill.runtime.store import Skipped

logger = logging.getLogger(__name__)

# No text encoder reads more than 512 tokens; tokenizers take minutes over a megabyte.
MAX_CAPTION = 10_000

AHEAD = 8  # images of each thread


@dataclass(frozen=True)
class Entry:
    """One image as it lies in its source.

    Attributes:
        key: its name in the source.
        file: the encoded image.
        texts: those that may be its caption, by field.
    """

    key: str
    file: Path | BinaryIO
    texts: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """One image and what it shows.

    Attributes:
        key: its name in the source.
        image: RGB, of any size.
        caption: "" where the source has none.
    """

    key: str
    image: Image.Image
    caption: str


class ImageSource(ABC):
    """Images with captions, decoded as they are asked for.

    Args:
        choice: of the captions.
        read_as: whatever else decides what is read of the contents; `choice` alone where None.

    Attributes:
        broken_images: how many the latest walk has skipped so far because they could not be decoded.
        missing_captions: how many samples of the latest walk have the caption "" so far.
    """

    def __init__(self, choice: CaptionChoice, read_as: Any = None):
        self.choice, self.read_as = choice, choice if read_as is None else read_as
        self.broken_images = self.missing_captions = 0

    def __iter__(self) -> Iterator[Sample]:
        broken: list[Skipped] = []
        self.broken_images = self.missing_captions = 0
        for _, sample in self.decoded(self.entries(), broken):
            self.broken_images = len(broken)
            self.missing_captions += not sample.caption
            yield sample
        self.broken_images = len(broken)
        if broken:
            example = f"{broken[0].key}: {broken[0].reason}"
            logger.warning("skipped %d images of %s, such as %s", len(broken), self.describe(), example)

    def decoded(self, entries: Iterable[Entry], broken: list[Skipped]) -> Iterator[tuple[Entry, Sample]]:
        """Entries with their samples, in their order; those that cannot be decoded are added to `broken` instead."""
        waiting: deque[tuple[Entry, Future[Sample]]] = deque()
        pool = ThreadPoolExecutor(os.cpu_count())
        ahead = AHEAD * (os.cpu_count() or 1)
        try:
            for entry in chain(entries, repeat(None, ahead)):  # the last ones call for what still waits
                if entry is not None:
                    waiting.append((entry, pool.submit(self.decode, entry)))
                if waiting and (entry is None or len(waiting) > ahead):
                    first, decoding = waiting.popleft()
                    try:
                        sample = decoding.result()
                    except ValueError as error:
                        broken.append(Skipped(first.key, str(error)))
                    else:
                        yield first, sample
        finally:
            pool.shutdown(cancel_futures=True)

    def decode(self, entry: Entry) -> Sample:
        """The image and caption of an entry; ValueError if the image cannot be decoded."""
        return Sample(entry.key, decode_image(entry.file), self.caption_of(entry))

    def caption_of(self, entry: Entry) -> str:
        """ "" where the source has none."""
        return self.choice.sample(entry.key, entry.texts)[:MAX_CAPTION]

    def fingerprint(self, hashes: HashMemo | None = None) -> str:
        """64 hex digits: the same wherever the data lies, another as soon as images or captions may differ.

        Args:
            hashes: what is known already of large files.
        """
        digest = hashlib.sha256(repr(self.read_as).encode())
        for part in self.contents(hashes):
            update(digest, part)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line for people."""
        return f"{self.named()} (caption: {self.choice.describe()})"

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every image, always in the same order, none of them decoded."""

    @abstractmethod
    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """What `fingerprint` is of, beside how captions are sampled."""

    @abstractmethod
    def named(self) -> str:
        """What it is and where it lies, for people."""
