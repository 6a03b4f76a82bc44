"""Tables as files for other programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from gendistill.runtime.files import written_aside


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A header and a line a row as RFC 4180 has it, UTF-8, whole or not at all. None becomes an empty cell.

    Raises:
        ValueError: a row has not as many cells as there are columns, or the disk does not take it.
    """
    lines = [tuple(row) for row in rows]
    for number, line in enumerate(lines):
        if len(line) != len(columns):
            raise ValueError(f"rows[{number}]: got {len(line)} cells, takes {len(columns)}, one a column.")
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(lines)
