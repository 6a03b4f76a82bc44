"""Tar archives, read as streams: members are not written to disk, and members outside the archive's folder are rejected."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

# Larger than any image within `MAX_PIXELS`; a gzip of a megabyte can hold a gigabyte of zeros.
MAX_MEMBER_BYTES = 512 * 2**20


def tar_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a `.tar`, `.tar.gz` or `.tgz`, one in memory at a time.

    Raises:
        ValueError: the archive is damaged, or a member is a link or a device, lies outside the archive's folder, or is
            larger than `MAX_MEMBER_BYTES`.
    """
    # gzip is opened explicitly: the stream of tarfile mistakes the end of a truncated gzip for the end of the archive.
    opened = gzip.open if archive.suffix.lower() in (".gz", ".tgz") else open
    try:
        with opened(archive, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                require_safe(f"the shard {archive}", member.name, member.size)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"data: the shard {archive} holds {member.name!r}, a link or device; expects files.")
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error.args[0]
        raise ValueError(f"data: the shard {archive} cannot be read ({reason}); expects a tar.") from error


def require_safe(archive: str, name: str, size: int) -> None:
    """Raise ValueError for a member that lies outside its archive's folder or is larger than `MAX_MEMBER_BYTES`."""
    path = PureWindowsPath(name)  # parses both kinds of slash, and drives
    if path.anchor or ".." in path.parts:
        raise ValueError(f"data: {archive} holds {name!r}, outside its folder; expects relative paths.")
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"data: {archive} holds {name!r} of {size} bytes; expects at most {MAX_MEMBER_BYTES}.")
