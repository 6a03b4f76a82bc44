"""Tar archives, read as streams: nothing in them reaches the disk, and nothing that would climb out is read."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

# More than any image that `MAX_PIXELS` lets through; a gzip of a megabyte can hold a gigabyte of zeros.
MAX_MEMBER_BYTES = 512 * 2**20


def tar_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a `.tar`, `.tar.gz` or `.tgz`, one in memory at a time.

    Raises:
        ValueError: the archive is damaged, or a member is a link or a device, lies outside the archive's folder, or is
            larger than `MAX_MEMBER_BYTES`.
    """
    # Opened here: tarfile's own stream would take the end of a gzip that was cut short for the end of the archive.
    opened = gzip.open if archive.suffix.lower() in (".gz", ".tgz") else open
    try:
        with opened(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                require_safe(f"the shard {archive}", member.name, member.size)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"data: the shard {archive} holds {member.name!r}, a link or device; it expects files.")
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error.args[0]
        raise ValueError(f"data: the shard {archive} cannot be read ({what}); it expects a tar.") from error


def require_safe(archive: str, name: str, size: int) -> None:
    """Raise ValueError for a member that lies outside its archive's folder or is larger than `MAX_MEMBER_BYTES`."""
    path = PureWindowsPath(name)  # which knows both kinds of slash, and drives
    if path.anchor or ".." in path.parts:
        raise ValueError(f"data: {archive} holds {name!r}, outside its folder; it expects relative paths.")
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"data: {archive} holds {name!r} of {size} bytes; it expects at most {MAX_MEMBER_BYTES}.")
