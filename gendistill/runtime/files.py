"""Files that are there whole or not at all, whoever else writes them and whenever the power fails."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(final: Path) -> Iterator[Path]:
    """A name beside `final` to write under, which is flushed and becomes `final` if the block ends well.

    The name is this writer's own, so that two who write the same file do not meet; it keeps the suffix of `final`.

    Raises:
        ValueError: the disk does not take it.
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
    """As `atomic_write`, for a file that one process alone writes: what it leaves when it is killed, the next one overwrites.

    Raises:
        OSError: the disk does not take it.
    """
    temporary = final.with_name(f".{final.name}")
    yield temporary
    os.replace(temporary, final)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A name beside `final` to make a folder under, which becomes `final` if the block ends well.

    Raises:
        ValueError: the disk does not accept it, or there is something in `final`, which stays as it is.
    """
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        if final.is_dir():
            final.rmdir()  # refused by the system unless it is empty
        os.replace(temporary, final)
    except OSError as error:
        raise ValueError(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its final name; what stood there goes only once the new one is complete."""
    old = _old(final)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Rename, then remove: what has its final name is complete at every moment."""
    old = _old(folder)
    os.replace(folder, old)
    shutil.rmtree(old)


def _old(folder: Path) -> Path:
    """A name for what is to go, which nothing has."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    return old


def canonical_json(value: Any) -> str:
    """JSON that does not depend on the order of names."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object with a hash of itself, so that `read_json` notices a number that changed."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"hash": _hash(value), **value}), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; ValueError if it is something else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or value.pop("hash", "") != _hash(value):
        raise ValueError(f"{path.name} is damaged")
    return value


def _hash(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
