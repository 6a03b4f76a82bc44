"""Which weights a figure was measured with: a digest of the file."""

import hashlib
from pathlib import Path


def weights_hash(path: Path) -> str:
    """The first 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
