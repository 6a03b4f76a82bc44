"""Atomic writing of files and folders, also with concurrent writers and power failures; what exists already is not lost."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK, SIGNATURE = ".lock", b"gendistill"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # full, over a quota, or read-only


def require_text(field: str, path: Path) -> None:
    """Raise ValueError for a folder whose name is not UTF-8: safetensors writes to no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} {str(path)!a}: the name is not UTF-8; expects a name of UTF-8 characters.") from error


@contextmanager
def atomic_write(final: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; the file is flushed and renamed to `final` if the block succeeds.

    The temporary name is unique, so that concurrent writers of one file do not interfere; it keeps the suffix of `final`.

    Raises:
        ValueError: the file cannot be written.
    """
    temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex}{final.suffix}")
    with _written(final, temporary):
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        honour_umask(temporary)
        os.replace(temporary, final)


@contextmanager
def written_alone(final: Path) -> Iterator[Path]:
    """Like `atomic_write`, for files with a single writer: a killed process leaves a temporary file that the next overwrites.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = final.with_name(f".{final.name}")
    try:
        yield temporary
        honour_umask(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yields a temporary path for a new folder in the same parent; it is renamed to `final` if the block succeeds.

    Raises:
        ValueError: the folder cannot be written, or `final` exists and is not empty; then it is not changed.
    """
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    with _written(final, temporary):
        yield temporary
        honour_umask(temporary)
        if final.is_dir():
            final.rmdir()  # fails unless it is empty
        os.replace(temporary, final)


@contextmanager
def updated_folder(final: Path, outdated: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary path for a folder that replaces `final` if the block succeeds.

    Files of the former folder that the new one does not have are kept: they are of other programs or of a person.

    Args:
        outdated: names of files that are not kept.

    Raises:
        OSError: the folder cannot be written; `final` is unchanged.
    """
    temporary = final.with_name(f".{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        yield temporary
        for file in final.rglob("*"):
            if file.is_file() and file.name not in outdated and not (kept := temporary / file.relative_to(final)).exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, kept)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _written(final: Path, temporary: Path) -> Iterator[None]:
    """Name the file that the disk does not accept, and leave nothing temporary."""
    try:
        yield
    except Exception as error:
        if (of_disk := as_os_error(error)) is None:
            raise
        raise ValueError(f"{final} cannot be written: {of_disk.strerror or of_disk}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def as_os_error(error: Exception, path: Path | None = None) -> OSError | None:
    """`error` as an OSError, from the text of an error of safetensors or torch if need be; None for errors of other kinds."""
    if isinstance(error, OSError):
        return error
    name = path and str(path)
    if number := re.search(r"(?:os error |Os { code: )(\d+)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])), name)
    if "PytorchStreamWriter failed writing" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    return None


@contextmanager
def folder_lock(folder: Path, setting: str) -> Iterator[None]:
    """Hold the lock of an output folder: no other process writes into it meanwhile. A process that is killed leaves no lock.

    Args:
        setting: the name of the folder's setting, for the error.

    Raises:
        ValueError: another process holds the lock.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{setting} {folder} is in use by another process that writes into it; expects another folder, or that the "
            "process has ended"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s %s: the file system has no locks (%s); no other process may write into it", setting, folder, error)
    try:
        yield
    finally:
        if lock.is_locked:
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


def require_vacant(folder: Path, setting: str, is_own: Callable[[Path], bool] = lambda path: False) -> None:
    """Raise ValueError unless a folder is new, or empty except for what `is_own` recognises."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{setting} {folder}: is a file; expects a new or an empty folder")
    if folder.is_dir() and (existing := sorted(path.name for path in folder.iterdir() if not is_own(path))):
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(
            f"{setting} {folder}: holds {existing[0]}{more}, which would be lost; expects a new or an empty folder"
        )


def holds_nothing(path: Path) -> bool:
    """Whether a hidden or an empty file, or a folder without others."""
    if path.is_dir() and not path.is_symlink():
        return all(map(holds_nothing, path.iterdir()))
    return path.name.startswith(".") or (path.is_file() and path.stat().st_size == 0)


def require_new(file: Path, setting: str, is_own: Callable[[Path], bool] = lambda file: False) -> None:
    """Raise ValueError if a file exists, is not empty and is not recognised as one of this program: writing would lose it."""
    if file.is_dir():
        raise ValueError(f"{setting} {file}: is a folder; expects the name of a file")
    if file.exists() and file.stat().st_size and not is_own(file):
        raise ValueError(f"{setting} {file}: exists and would be lost; expects a new name, or that it is moved elsewhere first")


def is_signed(file: Path) -> bool:
    """Whether a file ends with `SIGNATURE`, which readers of arrays and of zips do not mind: this program has written it."""
    with file.open("rb") as opened:
        opened.seek(-min(len(SIGNATURE), file.stat().st_size), os.SEEK_END)
        return opened.read() == SIGNATURE


def honour_umask(path: Path) -> None:
    """Give a file or folder, with all inside, the permissions of the umask: some libraries write for the owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if not each.is_symlink():
            mode = each.stat().st_mode & 0o7777
            with suppress(PermissionError):  # a file system without permissions
                each.chmod(mode | ((0o777 if each.is_dir() else 0o666) & ~mask))


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a complete folder to `final`; an existing folder is removed after the renaming."""
    honour_umask(temporary)
    old = _replaced_name(final)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Rename a folder, then remove it: a folder with its final name is always complete."""
    old = _replaced_name(folder)
    os.replace(folder, old)
    shutil.rmtree(old)


def _replaced_name(folder: Path) -> Path:
    """An unused name for a folder that is about to be removed."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    return old


def canonical_json(value: Any) -> str:
    """JSON that does not depend on the order of keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object with its hash, so that `read_json` detects damage."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"hash": _hash(value), **value}), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote; raises ValueError if the hash does not match."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.pop("hash", "") != _hash(value):
        raise ValueError(f"{path.name} is damaged")
    return value


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
