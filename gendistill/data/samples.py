"""What a source of pictures gives: samples, decoded one by one."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from gendistill.data.captions import CaptionChoice
from gendistill.data.pictures import decode_picture

logger = logging.getLogger(__name__)


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
        self.broken_pictures = self.missing_captions = 0
        for key, file, texts in self._entries():
            try:
                picture = decode_picture(file)
            except ValueError as error:
                self.broken_pictures += 1
                logger.warning("skipped %s: %s", key, error)
                continue
            caption = self.choice.draw(key, texts)
            self.missing_captions += not caption
            yield Sample(key, picture, caption)

    @abstractmethod
    def _entries(self) -> Iterator[tuple[str, Path | BinaryIO, dict[str, str]]]:
        """Key, encoded picture, and the texts that may be its caption by field."""

    @abstractmethod
    def fingerprint(self) -> str:
        """64 hex digits: the same wherever the data lies, another as soon as pictures or captions may differ."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""
