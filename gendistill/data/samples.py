"""What a source of pictures gives: entries as they lie there, samples decoded one by one."""

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from gendistill.data.images import decode_picture
from gendistill.data.sources.captions import CaptionChoice
from gendistill.runtime.hashing import HashMemo

logger = logging.getLogger(__name__)

# No text encoder reads more than 512 tokens; tokenizers take minutes over a megabyte.
MAX_CAPTION = 10_000

AHEAD = 8


@dataclass(frozen=True)
class Entry:
    """One picture as it lies in its source.

    Attributes:
        key: its name in the source.
        file: the encoded picture.
        texts: those that may be its caption, by field.
    """

    key: str
    file: Path | BinaryIO
    texts: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """One picture and what it shows.

    Attributes:
        key: its name in the source.
        picture: RGB, of any size.
        caption: "" where the source has none.
    """

    key: str
    picture: Image.Image
    caption: str


class PictureSource(ABC):
    """Pictures with captions, decoded one by one as they are asked for.

    Attributes:
        broken_pictures: how many the latest walk has skipped so far because they could not be decoded.
        missing_captions: how many samples of the latest walk have the caption "" so far.
    """

    def __init__(self, choice: CaptionChoice):
        self.choice = choice
        self.broken_pictures = 0
        self.missing_captions = 0

    def __iter__(self) -> Iterator[Sample]:
        return self._counted((entry, partial(self.decode, entry)) for entry in self.entries())

    def in_threads(self, workers: int | None = None) -> Iterator[Sample]:
        """The same samples in the same order, decoded in threads ahead of whoever takes them.

        Args:
            workers: threads, by default as many as there are processors; each is at most `AHEAD` pictures ahead.
        """
        workers = workers or os.cpu_count() or 1
        return self._counted(self._ahead(workers))

    def _ahead(self, workers: int) -> Iterator[tuple[Entry, Callable[[], Sample]]]:
        waiting: deque[tuple[Entry, Future[Sample]]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            for entry in self.entries():
                waiting.append((entry, pool.submit(self.decode, entry)))
                if len(waiting) > AHEAD * workers:
                    first, sample = waiting.popleft()
                    yield first, sample.result
            for first, sample in waiting:
                yield first, sample.result
        finally:
            pool.shutdown(cancel_futures=True)

    def _counted(self, decoding: Iterable[tuple[Entry, Callable[[], Sample]]]) -> Iterator[Sample]:
        self.broken_pictures = self.missing_captions = 0
        example = ""
        for entry, decode in decoding:
            try:
                sample = decode()
            except ValueError as error:
                self.broken_pictures += 1
                example = example or f"{entry.key}: {error}"
                continue
            self.missing_captions += not sample.caption
            yield sample
        if self.broken_pictures:
            logger.warning("skipped %d pictures of %s, such as %s", self.broken_pictures, self.describe(), example)

    def decode(self, entry: Entry) -> Sample:
        """The picture and caption of an entry; ValueError if the picture cannot be decoded."""
        return Sample(entry.key, decode_picture(entry.file), self.caption_of(entry))

    def caption_of(self, entry: Entry) -> str:
        """ "" where the source has none."""
        return self.choice.draw(entry.key, entry.texts)[:MAX_CAPTION]

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every picture, always in the same order, none of them decoded."""

    @abstractmethod
    def fingerprint(self, hashes: HashMemo | None = None) -> str:
        """64 hex digits: the same wherever the data lies, another as soon as pictures or captions may differ.

        Args:
            hashes: what is known already of large files.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""
