"""Hashes of file contents, for cache keys, and pseudorandom numbers from names."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from gendistill.runtime.files import atomic_write

HASHES = "hashes.json"  # the file of `HashMemo` in a cache folder

# A file may change again within this time without a new modification time.
SETTLED_NS = 2_000_000_000


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes as 64 hex digits, read in pieces of 1 MiB so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class HashMemo:
    """Cached SHA-256 of files, which are hashed again only if they may have changed: a run starts without reading large data.

    A hash is stored with the file's size, inode, modification time and change time. A program can set back the
    modification time but not the change time, so the memo detects every write through the file system. A file
    that changed less than two seconds ago is not stored (git's "racy" files).

    Args:
        file: JSON file with the hashes of earlier runs; created when there is a hash to store.
    """

    def __init__(self, file: Path):
        self.file = file
        self._known = self._read()
        self._new: dict[str, list[int | str]] = {}

    def sha256(self, path: Path) -> str:
        """The SHA-256 of `path`, 64 hex digits."""
        stat = path.stat()
        times = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        name = str(path.resolve())
        known = self._new.get(name) or self._known.get(name)
        if known and known[:-1] == times:
            return str(known[-1])
        started = time.time_ns()
        digest = file_sha256(path)
        if started - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
            self._new[name] = [*times, digest]
        return digest

    def keep(self) -> None:
        """Write the new hashes, merged with hashes that other runs have written meanwhile; errors of the disk are ignored."""
        with suppress(OSError, ValueError):
            if self._new:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.file) as temporary:
                    temporary.write_text(json.dumps(self._read() | self._new), encoding="utf-8")

    def _read(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def sha256_of(path: Path, hashes: HashMemo | None) -> str:
    """The SHA-256 of a file, from the memo if there is one."""
    return file_sha256(path) if hashes is None else hashes.sha256(path)


def update(digest: "hashlib._Hash", part: list[str | int]) -> None:
    """Add a part to a digest as JSON, so that ["a", "bc"] and ["ab", "c"] differ."""
    digest.update(json.dumps(part).encode())


def chance(*parts: str | int) -> float:
    """A pseudorandom number in [0, 1) that `parts`, such as a seed and the name of an image, determine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
