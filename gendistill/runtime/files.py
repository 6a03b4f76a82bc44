"""Atomic writing of files and folders, also with concurrent writers and power failures."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


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
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise ValueError(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def written_alone(final: Path) -> Iterator[Path]:
    """Like `atomic_write`, for files with a single writer: a killed process leaves a temporary file that the next overwrites.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = final.with_name(f".{final.name}")
    yield temporary
    os.replace(temporary, final)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yields a temporary path for a new folder in the same parent; it is renamed to `final` if the block succeeds.

    Raises:
        ValueError: the folder cannot be written, or `final` exists and is not empty; then it is not changed.
    """
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        if final.is_dir():
            final.rmdir()  # fails unless it is empty
        os.replace(temporary, final)
    except OSError as error:
        raise ValueError(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a complete folder to `final`; an existing folder is removed after the renaming."""
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
