"""Files that are there whole or not at all, whoever else writes them and whenever the power fails."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """A name beside `final` to write under, which is flushed and becomes `final` if the block ends well.

    The name is this writer's own, so that two who write the same file do not meet; it keeps the suffix of `final`.

    Raises:
        ValueError: the disk does not take it.
    """
    aside = final.with_name(f".{final.stem}.{uuid.uuid4().hex}{final.suffix}")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, final)
    except OSError as error:
        raise ValueError(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


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


def replace_folder(aside: Path, final: Path) -> None:
    """Give a finished folder its final name; what stood there goes only once the new one is complete."""
    old = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    shutil.rmtree(old, ignore_errors=True)
