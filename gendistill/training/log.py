"""`log.jsonl` of a run: one JSON object per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class RunLog:
    """Appends lines; a run that resumes from a checkpoint truncates the lines that were written after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def flushed_size(self) -> int:
        """The size in bytes, after a flush to the disk."""
        with self.path.open("a") as log:
            os.fsync(log.fileno())
            return os.fstat(log.fileno()).st_size

    def cut(self, size: int) -> None:
        """Truncate the log to its first `size` bytes."""
        if self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))
