"""Images in a folder, in a zip of a folder or in a list of files, with captions in metadata files or next to the images."""

import errno
import io
import logging
import lzma
import os
import stat
import unicodedata
import zipfile
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from gendistill.data.images import FORMAT_NAMES, SUFFIXES
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.archives import require_safe
from gendistill.data.sources.captions import FILES, FOLDER, CaptionChoice, CaptionOption, Texts
from gendistill.data.sources.metadata import METADATA, metadata_rows
from gendistill.data.texts import decode_text, folder_text, is_number, json_fields, printable, texts_of
from gendistill.runtime.hashing import HashMemo, file_sha256, sha256_of

logger = logging.getLogger(__name__)

ENCRYPTED = 1  # bit in the flags of a zip member
OTHER_FORMATS = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".ico", ".psd", ".tga", ".exr")


class NamedImages(ImageSource):
    """The images (PNG, JPEG, WebP, BMP, GIF) in a list of files, sorted by name.

    Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.parquet` (one row per image: `file_name`, relative to that
    file, and text fields), as in Hugging Face's `imagefolder`, or from a file next to the image: `.txt`, `.caption` or `.text`
    as kohya's scripts read, or `.json` with text fields as img2dataset writes. Names that begin with a dot are ignored.

    Args:
        path: path of the folder or archive.
        names: names of all files in it.
        caption: fields of the metadata; "txt" or another suffix for the text file next to the image; "folder" for the name of
            its subfolder. By default the usual fields of the metadata, then the text file.
        seed: seed of the sampling among several caption fields.
        rows: file names and fields of the images, instead of metadata files among `names`.

    Raises:
        ValueError: there is no image, a metadata file cannot be read, or no image has the caption field.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str],
        caption: CaptionOption,
        seed: int,
        rows: Iterable[tuple[str, dict[str, Any]]] | None = None,
    ):
        self.path = path
        found = sorted(names)
        self.images = [name for name in found if rows is not None or is_image_name(name)]
        if not self.images:
            raise ValueError(
                f"data: {printable(path)!r} holds no image; expects a folder or a zip with {FORMAT_NAMES}{holdings(found)}."
            )
        if others := Counter(suffix for name in found if (suffix := PurePosixPath(name).suffix.lower()) in OTHER_FORMATS):
            logger.warning("data: %s of %s are not read; expects %s", _counted(others), printable(path), FORMAT_NAMES)
        self.text_files = _text_files(self.images, found)
        self.metadata_files = (
            [] if rows is not None else [name for name in found if PurePosixPath(name).name.lower() in METADATA]
        )
        self._fields: set[str] = set()
        self._metadata = self._read_metadata(rows)
        described = [item for texts in self._metadata.values() for item in texts.items()]
        texts = {name for name, text in described if caption is not None or not is_number(text)}
        lists = {name for name, text in described if isinstance(text, list)}
        files = {field for fields in self.text_files.values() for field in fields}
        present = {name: name in lists for name in sorted(texts | (files - {"json"}))}
        if "json" in files:
            example = next(fields["json"] for fields in self.text_files.values() if "json" in fields)
            present |= {name: isinstance(text, list) for name, text in json_fields(self._text(example)).items()}
        folders = {text for name in self.images for text in folder_text(name).values()}
        super().__init__(CaptionChoice.from_option(caption, present, seed, complete="json" not in files))
        self.seen = _seen(
            [PurePosixPath(name).name for name in self.metadata_files], sorted(self._fields), sorted(files), folders
        )
        if caption is not None:
            aliases = ({"text"} if "txt" in files else set()) | ({FOLDER} if folders else set())
            self.choice.require({*present, *aliases}, printable(path))

    def _read_metadata(self, rows: Iterable[tuple[str, dict[str, Any]]] | None) -> dict[str, Texts]:
        """The texts of each image that a metadata file describes."""
        if rows is None:
            rows = (
                ((PurePosixPath(name).parent / file).as_posix(), fields)
                for name in self.metadata_files
                for file, fields in metadata_rows(name, self.read(name), printable(self.path))
            )
        found: dict[str, Texts] = {}
        names = {_normal(name): name for name in self.images}
        similar = {form(key): name for form in (str.lower, _stem) for key, name in names.items()}
        absent = []
        for file, fields in rows:
            self._fields |= set(map(str, fields))
            if (image := names.get(_normal(file)) or similar.get(_normal(file).lower())) is None:
                absent.append(file)
            else:
                found[image] = {**found.get(image, {}), **texts_of(fields)}
        if absent:
            logger.warning("data: metadata names %d images that do not exist, such as %s", len(absent), printable(min(absent)))
        return found

    def __len__(self) -> int:
        """Number of images, including those that cannot be decoded."""
        return len(self.images)

    def named(self) -> str:
        return f"{len(self)} images in {printable(self.path)}"

    def entries(self) -> Iterator[Entry]:
        for name in self.images:
            yield Entry(printable(name), self.file(name), self._texts(name))

    def _texts(self, image: str) -> Texts:
        texts: dict[str, str | list[str]] = {}
        for field, file in self.text_files.get(image, {}).items():
            if field == "json":
                texts = {**json_fields(self._text(file)), **texts}
            else:
                texts[field] = self._text(file)
        if "txt" in texts:
            texts.setdefault("text", texts["txt"])
        return {**folder_text(image), **texts, **self._metadata.get(image, {})}

    def _text(self, name: str) -> str:
        try:
            return decode_text(self.read(name))
        except ValueError as error:
            logger.warning("%s", error)
            return ""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file; raises ValueError if it cannot be read."""

    def file(self, name: str) -> Path | BinaryIO:
        """The encoded image."""
        return io.BytesIO(self.read(name))


class ImageFolder(NamedImages):
    """The images of a folder and its subfolders, or of a list of files in it; see `NamedImages`."""

    def __init__(
        self,
        path: str | Path,
        caption: CaptionOption = None,
        seed: int = 0,
        names: Iterable[str] | None = None,
        rows: Iterable[tuple[str, dict[str, Any]]] | None = None,
    ):
        super().__init__(Path(path), files_below(Path(path)) if names is None else names, caption, seed, rows)

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        """Names, sizes and modification times of images and text files, and the content of the metadata files."""
        for name in sorted({*self.images, *(file for files in self.text_files.values() for file in files.values())}):
            try:
                status = (self.path / name).stat()
            except OSError as error:  # a dead link, which is reported when it is decoded
                yield [name, error.errno or 0]
            else:
                yield [name, status.st_size, status.st_mtime_ns]
        for name in self.metadata_files:
            yield [name, file_sha256(self.path / name)]
        if self._metadata and not self.metadata_files:
            yield [repr(sorted(self._metadata.items()))]

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(f"data: {printable(self.path / name)} cannot be read ({error.strerror}).") from error

    def file(self, name: str) -> Path:
        return self.path / name


class ZipImages(NamedImages):
    """The images of a `.zip`, see `NamedImages`: members are not written to disk, and `__MACOSX` is ignored.

    Raises:
        ValueError: the file is not a zip, is damaged or encrypted, or has a member outside its folder or larger than
            `MAX_MEMBER_BYTES`.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"data: {printable(path)!r} cannot be read ({error}); expects a zip of images.") from error
        members = [info for info in self.archive.infolist() if not info.is_dir()]
        for info in members:
            require_safe(str(path), info.filename, info.file_size)
            if info.flag_bits & ENCRYPTED:
                raise ValueError(f"data: {info.filename!r} in {path} is encrypted; expects a zip without a password.")
        super().__init__(Path(path), [info.filename for info in members if not is_hidden(info.filename)], caption, seed)

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        yield ["zip", sha256_of(self.path, hashes)]

    def read(self, name: str) -> bytes:
        """The content of a member: at most its declared size, which is at most `MAX_MEMBER_BYTES`."""
        try:
            return self.archive.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"data: {name!r} in {self.path} cannot be read ({error}); expects a complete zip.") from error


def files_below(folder: Path) -> Iterator[str]:
    """Paths relative to `folder`, with forward slashes, of the files in it and in its subfolders; links are followed.

    Files and folders whose name begins with a dot, pipes and devices are left out. A link to a folder that contains it is not
    entered again. Folders that cannot be read are reported in a warning.

    Raises:
        ValueError: `folder` itself cannot be read.
    """
    yield from _walk(folder, "", ())


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not prefix:
            raise ValueError(f"data: {printable(folder)!r} cannot be read ({error.strerror}).") from error
        logger.warning("data: %s cannot be read (%s); its images are left out", printable(folder), error.strerror)
        return
    place = status.st_dev, status.st_ino
    if place in above:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if error.errno == errno.ELOOP or is_image_name(entry.name):
                yield prefix + entry.name  # a dead link in the place of an image is a broken image
            continue
        if stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, place))
        elif stat.S_ISREG(mode):
            yield prefix + entry.name


def is_image_name(name: str) -> bool:
    """Whether a file name ends as that of an image."""
    return name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a member of an archive is hidden, or one of the files that macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def holdings(names: Iterable[str]) -> str:
    """The suffixes of files, and how many files have each, for a message: `; it holds .heic 3, .md 1`."""
    counts = Counter(PurePosixPath(printable(name)).suffix.lower() or "without a suffix" for name in names)
    return f" (it holds files: {_counted(counts)})" if counts else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))


def _stem(name: str) -> str:
    """A name in lower case without its suffix."""
    return name.rpartition(".")[0].lower()


def _normal(name: str) -> str:
    """A name as one of several Unicode forms: macOS decomposes the letters of file names."""
    return unicodedata.normalize("NFC", name)


def _text_files(images: list[str], names: list[str]) -> dict[str, dict[str, str]]:
    """The files with texts next to each image, by suffix: `a.txt` or `a.png.txt` of `a.png`."""
    found: dict[str, dict[str, str]] = {}
    by_stem: dict[str, dict[str, str]] = {}
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() in (*FILES, "json"):
            by_stem.setdefault(stem, {})[suffix.lower()] = name
    for image in images:
        if texts := by_stem.get(image.rpartition(".")[0], {}) | by_stem.get(image, {}):
            found[image] = texts
    return found


def _seen(metadata: list[str], fields: list[str], files: list[str], folders: set[Any]) -> str:
    """The texts that a folder has, for a message."""
    names = f"{' and '.join(sorted(set(metadata)))} with the fields {', '.join(fields) or 'file_name alone'}"
    found = [names] if metadata or fields else []
    found += [f"files of the images' names that end with {', '.join('.' + suffix for suffix in files)}"] if files else []
    found += [f"the subfolders {', '.join(sorted(folders)[:3])}, which the field {FOLDER} names"] if folders else []
    expected = f"{METADATA[0]}, {METADATA[1]} and text files such as 1.txt or 1.caption of 1.png"
    return f"found {'; '.join(found)}" if found else f"found none of {expected}"
