"""Pictures in a zip archive: read member by member, nothing in it reaches the disk or is read if it would climb out."""

import hashlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from gendistill.data.images import TAKEN
from gendistill.data.samples import Entry, PictureSource
from gendistill.data.sources.archives import MAX_MEMBER_BYTES
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.data.sources.folder import is_picture
from gendistill.data.texts import decode_text, metadata_lines, text_beside, with_text
from gendistill.runtime.hashing import HashMemo, sha256_of, update

ENCRYPTED = 1  # bit of a member's flags


class ZipPictures(PictureSource):
    """The pictures (PNG, JPEG, WebP, BMP, GIF) of a `.zip`, in the order of their names.

    Captions are found as in a folder: `metadata.jsonl` (a line a picture: `file_name`, relative to that file, and text
    fields), or a `.txt` of the same name beside the picture. Names that begin with a dot, and `__MACOSX`, are left out.

    Args:
        path: the archive.
        caption: fields of `metadata.jsonl`, or "txt"; by default `text`, which the `.txt` stands in for.
        seed: of the draw among several caption fields.

    Raises:
        ValueError: it is no zip, is damaged or encrypted, holds no picture, or has a member outside its folder or of more
            than `MAX_MEMBER_BYTES`; or no picture has that caption field.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        super().__init__(CaptionChoice.of(caption, "text", seed))
        self.path = Path(path)
        with self._opened() as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            for info in members.values():
                self._refuse(info)
            names = sorted(name for name in members if not _is_hidden(name))
            self.pictures = [name for name in names if is_picture(name)]
            if not self.pictures:
                raise ValueError(f"data: {str(path)!r} holds no picture; it takes a zip with {TAKEN}.")
            known = set(names)
            self._text_files = {text for name in self.pictures if (text := text_beside(name)) in known}
            self._metadata: dict[str, dict[str, str]] = {}
            for name in names:
                if PurePosixPath(name).name == "metadata.jsonl":
                    # Split at line ends only: `str.splitlines` would also cut at U+2028, which JSON may hold.
                    lines = decode_text(self._bytes(archive, name)).split("\n")
                    self._metadata.update(metadata_lines(lines, name, f"{name} in {self.path}"))
        if caption is not None:
            present = {field for fields in self._metadata.values() for field in fields}
            self.choice.require(present | ({"text", "txt"} if self._text_files else set()), str(path))

    def __len__(self) -> int:
        """Pictures in the archive, the broken ones among them."""
        return len(self.pictures)

    def fingerprint(self, hashes: HashMemo | None = None) -> str:
        """A hash of the archive's content, and of how captions are drawn; it reads bytes that `hashes` lacks."""
        digest = hashlib.sha256(repr(self.choice).encode())
        update(digest, ["zip", sha256_of(self.path, hashes)])
        return digest.hexdigest()

    def describe(self) -> str:
        return f"{len(self)} pictures in {self.path} (caption: {self.choice.describe()})"

    def entries(self) -> Iterator[Entry]:
        with self._opened() as archive:
            for name in self.pictures:
                text = self._bytes(archive, text_beside(name)) if text_beside(name) in self._text_files else None
                texts = with_text(self._metadata.get(name, {}), text)
                yield Entry(name, io.BytesIO(self._bytes(archive, name)), texts)

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"data: {str(self.path)!r} cannot be read ({error}); it takes a zip of pictures.") from error

    def _bytes(self, archive: zipfile.ZipFile, name: str) -> bytes:
        """A member's content: never more than it said that it holds, which is at most `MAX_MEMBER_BYTES`."""
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"data: {name!r} in {self.path} cannot be read ({error}); it takes a whole zip.") from error

    def _refuse(self, info: zipfile.ZipInfo) -> None:
        path = PureWindowsPath(info.filename)  # which knows both kinds of slash, and drives
        if path.anchor or ".." in path.parts:
            raise ValueError(f"data: {self.path} holds {info.filename!r}, outside its folder; it takes relative paths.")
        if info.flag_bits & ENCRYPTED:
            raise ValueError(f"data: {info.filename!r} in {self.path} is encrypted; it takes a zip without a password.")
        if info.file_size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"data: {self.path} holds {info.filename!r} of {info.file_size} bytes; it takes at most {MAX_MEMBER_BYTES}."
            )


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
