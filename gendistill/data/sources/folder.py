"""Pictures that lie in a folder, with captions in `metadata.jsonl` or in text files beside them."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from gendistill.data.images import SUFFIXES, TAKEN
from gendistill.data.samples import Entry, PictureSource
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.data.texts import metadata_lines, text_beside, text_lines, with_text
from gendistill.runtime.hashing import HashMemo, file_sha256, update

logger = logging.getLogger(__name__)


class ImageFolder(PictureSource):
    """The pictures (PNG, JPEG, WebP, BMP, GIF) of a folder and of those below it, in the order of their paths.

    Captions come from `metadata.jsonl` (a line a picture: `file_name`, relative to that file, and text fields), as
    Hugging Face's `imagefolder` reads it, or from a `.txt` of the same name beside the picture. Names that begin
    with a dot are left out.

    Args:
        path: the folder.
        caption: fields of `metadata.jsonl`, or "txt" for the file beside the picture. By default `text`, which the
            `.txt` stands in for where `metadata.jsonl` has none.
        seed: of the draw among several caption fields.

    Raises:
        ValueError: there is no picture, `metadata.jsonl` cannot be read, or no picture has that caption field.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        super().__init__(CaptionChoice.of(caption, "text", seed))
        self.path = Path(path)
        files = sorted(files_below(self.path))
        self.pictures = [name for name in files if is_picture(name)]
        if not self.pictures:
            raise ValueError(f"data: {str(path)!r} holds no picture; it takes a folder with {TAKEN}.")
        self._metadata_files = [name for name in files if Path(name).name == "metadata.jsonl"]
        known = set(files)
        self._text_files = [text for name in self.pictures if (text := text_beside(name)) in known]
        self._metadata, present = self._read_metadata()
        if caption is not None:
            self.choice.require(present | ({"text", "txt"} if self._text_files else set()), str(path))

    def __len__(self) -> int:
        """Pictures in the folder, the broken ones among them."""
        return len(self.pictures)

    def fingerprint(self, hashes: HashMemo | None = None) -> str:
        """A hash of names, sizes and modification times, of the captions' file, and of how captions are drawn."""
        digest = hashlib.sha256(repr(self.choice).encode())
        for name in sorted({*self.pictures, *self._text_files}):
            stat = (self.path / name).stat()
            update(digest, [name, stat.st_size, stat.st_mtime_ns])
        for name in self._metadata_files:
            update(digest, [name, file_sha256(self.path / name)])
        return digest.hexdigest()

    def describe(self) -> str:
        return f"{len(self)} pictures in {self.path} (caption: {self.choice.describe()})"

    def entries(self) -> Iterator[Entry]:
        beside = set(self._text_files)
        for name in self.pictures:
            text = (self.path / text_beside(name)).read_bytes() if text_beside(name) in beside else None
            yield Entry(name, self.path / name, with_text(self._metadata.get(name, {}), text))

    def _read_metadata(self) -> tuple[dict[str, dict[str, str]], set[str]]:
        """The caption fields of each picture, and the names of all text fields that are there."""
        metadata, present = {}, set()
        for name in self._metadata_files:
            lines = text_lines(self.path / name, "data")
            for picture, fields in metadata_lines(lines, name, str(self.path / name)):
                present |= set(fields)
                metadata[picture] = {field: fields[field] for field in self.choice.fields if field in fields}
        absent = set(metadata) - set(self.pictures)
        if absent:
            logger.warning("metadata.jsonl names %d pictures that are not there, such as %s", len(absent), min(absent))
        return metadata, present


def files_below(folder: Path) -> Iterator[str]:
    """Paths relative to `folder`, with forward slashes, without anything whose name begins with a dot."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
