"""Images that lie in WebDataset shards: tar files, read as streams."""

import glob
import io
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from gendistill.data.images import SUFFIXES
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.archives import tar_members
from gendistill.data.sources.captions import CaptionChoice, CaptionOption
from gendistill.data.texts import decode_text, text_fields
from gendistill.runtime.hashing import HashMemo, sha256_of

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # WebDataset's key and suffix: up to the first dot of the file's name, and after


class WebDatasetShards(ImageSource):
    """The samples of WebDataset shards, shard after shard: KEY.png (or jpg, jpeg, webp, bmp, gif), KEY.txt, KEY.json.

    Shards are read as streams, and nothing in them is ever written to disk.

    Args:
        path: a shard, a folder of shards, or a pattern such as `train-*.tar.gz` or `train-{000..003}.tar`.
        caption: fields of KEY.json, or "txt" for KEY.txt, which is the default.
        seed: of the sample among several caption fields.

    Raises:
        ValueError: there is no such shard, a shard is damaged or would write outside its folder, or the first sample has
            no such caption field.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        super().__init__(CaptionChoice.of(caption, "txt", seed))
        self.path = str(path)
        self.shards = find_shards(path)
        first = next(self._samples(), None)
        if first is None:
            raise ValueError(f"data: {self.path!r} holds no sample; it expects shards with KEY.png and KEY.txt.")
        if caption is not None:
            self.choice.require(_sample_texts(first[1]), f"the first sample of {self.path}")

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        for shard in self.shards:
            yield [shard.name, sha256_of(shard, hashes)]

    def named(self) -> str:
        return f"{len(self.shards)} WebDataset {'shard' if len(self.shards) == 1 else 'shards'} of {self.path}"

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Keys, and the files that follow one another under each, by suffix: `deep/a.seg.png` is `seg.png` of `deep/a`."""
        for shard in self.shards:
            members = ((NAME.fullmatch(name), data) for name, data in tar_members(shard))
            named = ((name[1], name[2].lower(), data) for name, data in members if name)
            for key, files in groupby(named, lambda file: file[0]):
                sample: dict[str, bytes] = {}
                for _, suffix, data in files:
                    if suffix in sample:
                        raise ValueError(f"data: the shard {shard} cannot be read ({key}.{suffix} is in it twice).")
                    sample[suffix] = data
                yield key, sample

    def entries(self) -> Iterator[Entry]:
        for key, sample in self._samples():
            image = next((sample[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in sample), b"")
            yield Entry(key, io.BytesIO(image), _sample_texts(sample))


def find_shards(path: str | Path) -> list[Path]:
    """The shards that a path, a folder or a pattern (`*`, `?`, `[...]`, `{000..003}`) means, sorted, each once.

    Raises:
        ValueError: a part of the pattern matches no file, or matches one that is no `.tar`, `.tar.gz` or `.tgz`.
    """
    here = Path(path).expanduser()
    if here.is_dir():
        found = [here / name for name in os.listdir(here) if is_shard(name)]
        if not found:
            raise ValueError(f"data: {str(path)!r} holds no shard; it expects a folder with {', '.join(SHARD_SUFFIXES)}.")
    elif here.exists():
        found = [here]
    else:
        found = [file for pattern in _expanded(str(here)) for file in _matches(pattern)]
    for file in found:
        if not is_shard(file.name):
            raise ValueError(f"data: {str(file)!r} is no shard; it expects {', '.join(SHARD_SUFFIXES)}, or a folder.")
    return sorted(set(found))


def _expanded(pattern: str) -> list[str]:
    """A pattern with `{000..003}` and `{a,b}` written out, as a shell does."""
    if not (brace := re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)):
        if "{" in pattern or "}" in pattern:
            raise ValueError(f"data: {pattern!r} has a brace too many; it expects a pattern such as '{{000..003}}'.")
        return [pattern]
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", brace[1]):
        width = max(map(len, ends.groups())) if any(len(end) > 1 and end[0] == "0" for end in ends.groups()) else 0
        chosen = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        chosen = brace[1].split(",")
    return [file for each in chosen for file in _expanded(pattern[: brace.start()] + each + pattern[brace.end() :])]


def _matches(pattern: str) -> list[Path]:
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]
    if not found:
        what = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise ValueError(f"data: {pattern!r} {what}; it expects a folder, a .tar, a pattern of .tar, or a .txt.")
    return found


def is_shard(name: str) -> bool:
    return name.lower().endswith(SHARD_SUFFIXES) and not name.startswith(".")


def _sample_texts(sample: dict[str, bytes]) -> dict[str, str]:
    texts = text_fields(decode_text(sample.get("json", b"")))
    return texts | {"txt": decode_text(sample["txt"])} if "txt" in sample else texts
