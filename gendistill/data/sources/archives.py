"""Tar archives, read as streams: members are not written to disk, and members outside the archive's folder are rejected."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gendistill.data.texts import printable

# Larger than any image within `MAX_PIXELS`; a gzip of a megabyte can hold a gigabyte of zeros.
MAX_MEMBER_BYTES = 512 * 2**20
COMPRESSIONS: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


def tar_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a tar, plain or compressed by gzip, bzip2 or xz, one in memory at a time.

    Raises:
        ValueError: the archive is damaged, or a member is a link or a device, lies outside the archive's folder, or is
            larger than `MAX_MEMBER_BYTES`.
    """
    yield from _members(archive, "r|", lambda name: True)


def named_members(archive: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The members with one of these file names, as `tar_members`; of a plain tar, only headers and these are read."""
    yield from _members(archive, "r:", lambda name: PurePosixPath(name).name in names)


def _members(archive: Path, mode: Any, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    named = f"the shard {printable(archive)}"
    try:
        with _opened(archive)(archive, "rb") as stream, tarfile.open(fileobj=stream, mode=mode) as tar:
            for member in tar:
                require_safe(named, member.name, member.size)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(
                        f"data: {named} holds {printable(member.name)!r}, a link or device; expects files, as "
                        "`tar --dereference --hard-dereference` packs them."
                    )
                if member.isfile() and wanted(member.name):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]
        raise ValueError(f"data: {named} cannot be read ({reason}); expects a tar.") from error


def _opened(archive: Path) -> Any:
    """The function that opens a file with its compression, detected from its first bytes.

    It is called explicitly: the stream of tarfile mistakes the end of a truncated gzip for the end of the archive.
    """
    with archive.open("rb") as file:
        first = file.read(8)
    return next((opened for magic, opened in COMPRESSIONS if first.startswith(magic)), open)


def require_safe(archive: str, name: str, size: int) -> None:
    """Raise ValueError for a member that lies outside its archive's folder or is larger than `MAX_MEMBER_BYTES`."""
    path = PureWindowsPath(name)  # parses both kinds of slash, and drives
    if path.anchor or ".." in path.parts:
        raise ValueError(f"data: {archive} holds {printable(name)!r}, outside its folder; expects relative paths.")
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"data: {archive} holds {printable(name)!r} of {size} bytes; expects at most {MAX_MEMBER_BYTES}.")
