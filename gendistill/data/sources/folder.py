"""Images that lie in a folder or in a zip of one, with captions in `metadata.jsonl` or in text files beside them."""

import io
import logging
import lzma
import os
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gendistill.data.images import SUFFIXES, TAKEN
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.archives import require_safe
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.data.texts import decode_text, sidecar_caption, text_fields, text_lines
from gendistill.runtime.hashing import HashMemo, file_sha256, sha256_of

logger = logging.getLogger(__name__)

ENCRYPTED = 1  # bit of a zip member's flags


class NamedImages(ImageSource):
    """The images (PNG, JPEG, WebP, BMP, GIF) among files, in the order of their names.

    Captions come from `metadata.jsonl` (a line an image: `file_name`, relative to that file, and text fields), as
    Hugging Face's `imagefolder` reads it, or from a `.txt` of the same name beside the image. Names that begin
    with a dot are left out.

    Args:
        path: of the folder or archive.
        names: of all files in it.
        caption: fields of `metadata.jsonl`, or "txt" for the file beside the image. By default `text`, which the
            `.txt` stands in for where `metadata.jsonl` has none.
        seed: of the sample among several caption fields.

    Raises:
        ValueError: there is no image, `metadata.jsonl` cannot be read, or no image has that caption field.
    """

    def __init__(self, path: Path, names: list[str], caption: CaptionOption, seed: int):
        super().__init__(CaptionChoice.of(caption, "text", seed))
        self.path = path
        names = sorted(names)
        self.images = [name for name in names if is_image_name(name)]
        if not self.images:
            raise ValueError(f"data: {str(path)!r} holds no image; it expects a folder or a zip with {TAKEN}.")
        self.text_files = {sidecar_caption(name) for name in self.images} & set(names)
        self.metadata_files = [name for name in names if PurePosixPath(name).name == "metadata.jsonl"]
        self._metadata: dict[str, dict[str, str]] = {}
        present = {"text", "txt"} if self.text_files else set()
        for name in self.metadata_files:
            for number, line in enumerate(text_lines(self.read(name), f"data: {name!r} in {path}"), start=1):
                if not line.strip():
                    continue
                fields = text_fields(line)
                if "file_name" not in fields:
                    raise ValueError(f"data: line {number} of {name} in {path} expects a JSON object with `file_name`.")
                image = (PurePosixPath(name).parent / fields.pop("file_name")).as_posix()
                present |= set(fields)
                self._metadata[image] = {field: fields[field] for field in self.choice.fields if field in fields}
        if absent := set(self._metadata) - set(self.images):
            logger.warning("metadata.jsonl names %d images that are not there, such as %s", len(absent), min(absent))
        if caption is not None:
            self.choice.require(present, str(path))

    def __len__(self) -> int:
        """Images, the broken ones among them."""
        return len(self.images)

    def named(self) -> str:
        return f"{len(self)} images in {self.path}"

    def entries(self) -> Iterator[Entry]:
        for name in self.images:
            texts = self._metadata.get(name, {})
            if sidecar_caption(name) in self.text_files:
                text = decode_text(self.read(sidecar_caption(name)))
                texts = {"text": text, **texts, "txt": text}
            yield Entry(name, self.file(name), texts)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content."""

    def file(self, name: str) -> Path | BinaryIO:
        """An image as it is decoded from."""
        return io.BytesIO(self.read(name))


class ImageFolder(NamedImages):
    """The images of a folder and of those below it; see `NamedImages`."""

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        super().__init__(Path(path), list(files_below(Path(path))), caption, seed)

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """Names, sizes and modification times, and the content of the captions' files."""
        for name in sorted({*self.images, *self.text_files}):
            stat = (self.path / name).stat()
            yield [name, stat.st_size, stat.st_mtime_ns]
        for name in self.metadata_files:
            yield [name, file_sha256(self.path / name)]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def file(self, name: str) -> Path:
        return self.path / name


class ZipImages(NamedImages):
    """The images of a `.zip`, see `NamedImages`: nothing in it reaches the disk, and `__MACOSX` is left out.

    Raises:
        ValueError: it is no zip, is damaged or encrypted, or has a member outside its folder or of more than
            `MAX_MEMBER_BYTES`.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"data: {str(path)!r} cannot be read ({error}); it expects a zip of images.") from error
        members = [info for info in self.archive.infolist() if not info.is_dir()]
        for info in members:
            require_safe(str(path), info.filename, info.file_size)
            if info.flag_bits & ENCRYPTED:
                raise ValueError(f"data: {info.filename!r} in {path} is encrypted; it expects a zip without a password.")
        super().__init__(Path(path), [info.filename for info in members if not _is_hidden(info.filename)], caption, seed)

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        yield ["zip", sha256_of(self.path, hashes)]

    def read(self, name: str) -> bytes:
        """A member's content: never more than it said that it holds, which is at most `MAX_MEMBER_BYTES`."""
        try:
            return self.archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"data: {name!r} in {self.path} cannot be read ({error}); it expects a whole zip.") from error


def files_below(folder: Path) -> Iterator[str]:
    """Paths relative to `folder`, with forward slashes, without anything whose name begins with a dot."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
