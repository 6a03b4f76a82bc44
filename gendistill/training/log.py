"""`log.jsonl` of a run: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class RunLog:
    """Lines are appended; a run that goes on from a checkpoint cuts off those that were written after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")

    def flushed_size(self) -> int:
        """Bytes, all of them on the disk."""
        with self.path.open("a") as log:
            os.fsync(log.fileno())
            return log.tell()

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes."""
        if self.path.exists():
            os.truncate(self.path, min(size, self.path.stat().st_size))
