"""Image sources: entries as they are stored, and samples that threads decode in advance."""

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from gendistill.data.images import decode_image
from gendistill.data.sources.captions import CaptionChoice, Texts
from gendistill.runtime.hashing import HashMemo, update
from gendistill.runtime.store import Skipped

logger = logging.getLogger(__name__)

# No text encoder reads more than 512 tokens; a tokenizer needs minutes for a megabyte.
MAX_CAPTION = 10_000

AHEAD = 8  # images that each thread decodes in advance


@dataclass(frozen=True)
class Entry:
    """One image as it is stored in its source.

    Attributes:
        key: name of the image in the source.
        file: the encoded image.
        texts: candidate captions by field.
        missing: why there is no image; "" if there is one.
    """

    key: str
    file: Path | BinaryIO
    texts: Texts
    missing: str = ""


@dataclass(frozen=True)
class Sample:
    """One decoded image and its caption.

    Attributes:
        key: name of the image in the source.
        image: RGB, of any size.
        caption: "" where the source has none.
    """

    key: str
    image: Image.Image
    caption: str


class ImageSource(ABC):
    """Images with captions, decoded during iteration.

    Args:
        choice: selects the caption among the texts of an image.
        read_as: everything that determines how the contents are read, for the fingerprint; `choice` alone where None.

    Attributes:
        broken_images: number of images that the latest iteration has skipped so far because they cannot be decoded.
        seen: the files, fields or columns that were searched for captions, for a message.
    """

    seen = ""

    def __init__(self, choice: CaptionChoice, read_as: Any = None):
        self.choice, self.read_as = choice, choice if read_as is None else read_as
        self.broken_images = 0

    def __iter__(self) -> Iterator[Sample]:
        broken: list[Skipped] = []
        self.broken_images = 0
        for _, sample in self.decoded(self.entries(), broken):
            self.broken_images = len(broken)
            yield sample
        self.broken_images = len(broken)
        if broken:
            example = f"{broken[0].key}: {broken[0].reason}"
            logger.warning("skipped %d images of %s, such as %s", len(broken), self.describe(), example)

    def decoded(self, entries: Iterable[Entry], broken: list[Skipped]) -> Iterator[tuple[Entry, Sample]]:
        """Entries with their samples, in the order of the entries; entries that cannot be decoded are appended to `broken`."""
        waiting: deque[tuple[Entry, Future[Sample]]] = deque()
        pool = ThreadPoolExecutor(os.cpu_count())
        ahead = AHEAD * (os.cpu_count() or 1)
        try:
            for entry in chain(entries, repeat(None, ahead)):  # the trailing None items flush the queue
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
        """The image and caption of an entry; raises ValueError if the image cannot be decoded."""
        if entry.missing:
            raise ValueError(f"image: {entry.missing}.")
        return Sample(entry.key, decode_image(entry.file), self.caption_of(entry))

    def caption_of(self, entry: Entry) -> str:
        """The caption of an entry; "" where the source has none."""
        return self.choice.sample(entry.key, entry.texts)[:MAX_CAPTION]

    def require_captions(self, setting: str = "data.caption", instead: str = "data.caption=none to train without") -> None:
        """Raise ValueError if no image has a caption, unless the choice is to have none.

        Args:
            setting, instead: what names a caption field, and what is done without captions, for the message.
        """
        if not self.choice.none and not any(self.caption_of(entry) for entry in self.entries()):
            raise ValueError(
                f"data: none of {self.named()} has a caption ({self.seen}); expects captions, a field named by {setting}, "
                f"or {instead}."
            )

    def field_of(self, known: Callable[[set[str]], bool]) -> str | None:
        """The field whose texts are all `known`, such as names of classes; of several, the one with most texts."""
        fields: dict[str, set[str]] = {}
        for entry in self.entries():
            for name, text in entry.texts.items():
                fields.setdefault(name, set()).update([text] if isinstance(text, str) else text)
        matching = [name for name, texts in fields.items() if known(texts)]
        return max(matching, key=lambda name: len(fields[name]), default=None)

    def fingerprint(self, hashes: HashMemo | None = None) -> str:
        """64 hex digits that do not depend on the location of the data and change when images or captions may have changed.

        Args:
            hashes: known hashes of large files.
        """
        digest = hashlib.sha256(repr(self.read_as).encode())
        for part in self.contents(hashes):
            update(digest, part)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line about the source for logs and model cards."""
        return f"{self.named()} (caption: {self.choice.describe()})"

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All images, not decoded, always in the same order."""

    @abstractmethod
    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """The contents that `fingerprint` hashes in addition to `read_as`."""

    @abstractmethod
    def named(self) -> str:
        """Kind and location of the source, for messages."""
