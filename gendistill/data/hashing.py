"""What a file's content is, as a short text: the ground of every cache key."""

import hashlib
import json
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes as 64 hex digits, read in pieces of 1 MiB so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def update(digest: "hashlib._Hash", part: list[str | int]) -> None:
    """Add one part to a digest as JSON, so that ["a", "bc"] and ["ab", "c"] differ."""
    digest.update(json.dumps(part).encode())
