"""Images in WebDataset shards: tar files, read as streams."""

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
NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # WebDataset's key and suffix: before and after the first dot of the file name


class WebDatasetShards(ImageSource):
    """The samples of WebDataset shards, shard after shard: KEY.png (or jpg, jpeg, webp, bmp, gif), KEY.txt, KEY.json.

    Shards are read as streams; members are not written to disk.

    Args:
        path: a shard, a folder of shards, or a pattern such as `train-*.tar.gz` or `train-{000..003}.tar`.
        caption: fields of KEY.json, or "txt" (the default) for KEY.txt.
        seed: seed of the sampling among several caption fields.

    Raises:
        ValueError: the shard does not exist, a shard is damaged or has a member outside its folder, or the first sample does
            not have the caption field.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        super().__init__(CaptionChoice.from_option(caption, "txt", seed))
        self.path = str(path)
        self.shards = find_shards(path)
        first = next(self._samples(), None)
        if first is None:
            raise ValueError(f"data: {self.path!r} holds no sample; expects shards with KEY.png and KEY.txt.")
        if caption is not None:
            self.choice.require(_sample_texts(first[1]), f"the first sample of {self.path}")

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        for shard in self.shards:
            yield [shard.name, sha256_of(shard, hashes)]

    def named(self) -> str:
        return f"{len(self.shards)} WebDataset {'shard' if len(self.shards) == 1 else 'shards'} of {self.path}"

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Keys, and the consecutive files of each key by suffix: `deep/a.seg.png` is `seg.png` of `deep/a`."""
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
    """The shards of a path, a folder or a pattern (`*`, `?`, `[...]`, `{000..003}`), sorted and without duplicates.

    Raises:
        ValueError: a part of the pattern matches no file, or matches a file other than `.tar`, `.tar.gz` or `.tgz`.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        files = [local / name for name in os.listdir(local) if is_shard(name)]
        if not files:
            raise ValueError(f"data: {str(path)!r} holds no shard; expects a folder with {', '.join(SHARD_SUFFIXES)}.")
    elif local.exists():
        files = [local]
    else:
        files = [file for pattern in _expanded(str(local)) for file in _matches(pattern)]
    for file in files:
        if not is_shard(file.name):
            raise ValueError(f"data: {str(file)!r} is not a shard; expects {', '.join(SHARD_SUFFIXES)}, or a folder.")
    return sorted(set(files))


def _expanded(pattern: str) -> list[str]:
    """The patterns after brace expansion of `{000..003}` and `{a,b}`, as in a shell."""
    if not (brace := re.search(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)):
        if "{" in pattern or "}" in pattern:
            raise ValueError(f"data: {pattern!r} has an unmatched brace; expects a pattern such as '{{000..003}}'.")
        return [pattern]
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", brace[1]):
        width = max(map(len, ends.groups())) if any(len(end) > 1 and end[0] == "0" for end in ends.groups()) else 0
        options = [str(number).zfill(width) for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        options = brace[1].split(",")
    return [file for option in options for file in _expanded(pattern[: brace.start()] + option + pattern[brace.end() :])]


def _matches(pattern: str) -> list[Path]:
    files = [Path(name) for name in glob.glob(pattern, recursive=True)]
    if not files:
        reason = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise ValueError(f"data: {pattern!r} {reason}; expects a folder, a .tar, a pattern of .tar, or a .txt.")
    return files


def is_shard(name: str) -> bool:
    """Whether a file name ends as that of a WebDataset shard."""
    return name.lower().endswith(SHARD_SUFFIXES) and not name.startswith(".")


def _sample_texts(sample: dict[str, bytes]) -> dict[str, str]:
    texts = text_fields(decode_text(sample.get("json", b"")))
    return texts | {"txt": decode_text(sample["txt"])} if "txt" in sample else texts
