"""What a file's content is, as a short text: the ground of every cache key. And chance that a name decides."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from gendistill.runtime.files import atomic_write

HASHES = "hashes.json"  # the memo of a folder of caches

# A file that changed less than this ago may change again without its times showing it.
SETTLED_NS = 2_000_000_000


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes as 64 hex digits, read in pieces of 1 MiB so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class HashMemo:
    """SHA-256 of files that are hashed again only if they may have changed: large data start without being read.

    A hash is kept with the file's size, inode, modification time and change time. A program can set back the
    modification time but not the change time, so a write that went through the file system is always seen. A file
    that changed less than two seconds ago is not remembered (git's "racy" files).

    Args:
        file: where hashes are kept between runs; made when something is worth keeping.
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
        """Write what was learnt, with what other runs have learnt in the meantime; where that cannot be, it is lost."""
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
    """The SHA-256 of a file, from the memo where there is one."""
    return file_sha256(path) if hashes is None else hashes.sha256(path)


def update(digest: "hashlib._Hash", part: list[str | int]) -> None:
    """Add one part to a digest as JSON, so that ["a", "bc"] and ["ab", "c"] differ."""
    digest.update(json.dumps(part).encode())


def chance(*parts: str | int) -> float:
    """A number in [0, 1) that `parts`, such as a seed and an image's name, decide."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
