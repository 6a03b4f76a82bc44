"""The folder that an evaluation writes its reports to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gendistill.runtime.device import make_folder
from gendistill.runtime.files import folder_lock, require_new

REPORT = "report.html"


@contextmanager
def report_folder(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder, created where it does not exist, and locked against other processes that write into it.

    Args:
        names: the files that will be written; those of an earlier evaluation are replaced.

    Raises:
        ValueError: the folder cannot be written, another process writes into it, or a file of that name is not a report.
    """
    folder = make_folder(out.expanduser())
    with folder_lock(folder, "out"):
        for name in names:
            require_new(folder / name, "out", is_report)
        yield folder


def is_report(file: Path) -> bool:
    """Whether an evaluation or a comparison wrote a file; a table or a plot is known by the JSON in its folder."""
    marked = file.with_name("comparison.json") if file.suffix in (".csv", ".png") else file
    try:
        content = marked.read_bytes()
    except OSError:
        return False
    return b"Written by gendistill" in content or b'"protocol"' in content
