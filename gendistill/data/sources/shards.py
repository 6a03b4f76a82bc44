"""Images in WebDataset shards and in plain tars of images, read as streams."""

import io
import logging
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath

from gendistill.data.images import SUFFIXES
from gendistill.data.samples import Entry, ImageSource
from gendistill.data.sources.archives import named_members, tar_members
from gendistill.data.sources.captions import CLASS_FILE, FIELDS, FILES, FOLDER, CaptionChoice, CaptionOption, Texts
from gendistill.data.sources.folder import files_below, holdings, is_hidden, is_image_name
from gendistill.data.sources.metadata import METADATA, metadata_rows
from gendistill.data.sources.patterns import matching_files
from gendistill.data.texts import decode_text, folder_text, is_number, json_fields, printable, texts_of
from gendistill.runtime.hashing import HashMemo, sha256_of

logger = logging.getLogger(__name__)

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TEXTS = (*FILES, CLASS_FILE, "json")  # suffixes of the files of a sample that are read as texts
EXAMPLES = 32  # samples that are read to find the caption fields
MAX_FILES = 64  # of a sample; more files whose names differ after the first dot are images of their own


class WebDatasetShards(ImageSource):
    """The samples of WebDataset shards, shard after shard: KEY.png (or jpg, jpeg, webp, bmp, gif) with texts.

    KEY is the name up to its first dot, as in WebDataset. Images whose names differ after that dot alone (`seed0_cfg7.5.png`)
    are images of their own, unless there is a KEY.png: then `KEY.mask.png` belongs to it and is not read. Texts are those of
    KEY.txt, KEY.caption or KEY.text, the fields of KEY.json, and the name of the image's folder (`folder`); or, in a single tar
    without these, of a metadata file as in a folder. Shards are read as streams; members are not written to disk.

    Args:
        path: a shard, a folder of shards, or a pattern such as `train-*.tar.gz` or `train-{000..003}.tar`.
        caption: fields of KEY.json, "txt" or another suffix for that file, or "folder". By default KEY.txt, KEY.caption or
            KEY.text, then the usual fields of KEY.json.
        seed: seed of the sampling among several caption fields.

    Raises:
        ValueError: the shard does not exist, a shard is damaged or has a member outside its folder, or the first samples do
            not have the caption field.
    """

    def __init__(self, path: str | Path, caption: CaptionOption = None, seed: int = 0):
        self.path = printable(path)
        self.shards = find_shards(path)
        self._reported = False
        examples = list(islice(self._samples(), EXAMPLES if caption is None else 1))
        if not examples:
            held = holdings(name for shard in self.shards for name, _ in tar_members(shard))
            raise ValueError(f"data: {self.path!r} holds no sample{held}; expects shards with KEY.png and KEY.txt.")
        self._metadata: dict[str, Texts] = {}
        if len(self.shards) == 1 and not any(set(_texts(key, sample)) - {FOLDER} for key, sample in examples):
            self._metadata = dict(_metadata(self.shards[0]))
        texts = {name: text for key, sample in reversed(examples) for name, text in self._texts_of(key, sample).items()}
        present = {
            name: isinstance(text, list)
            for name, text in texts.items()
            if name != FOLDER and (caption is not None or not is_number(text))
        }
        super().__init__(CaptionChoice.from_option(caption, present, seed, preferred=(*FILES, *FIELDS), complete=False))
        suffixes = sorted({suffix for _, sample in examples for suffix in sample})
        fields = f", and the fields {', '.join(texts)}" if texts else ""
        self.seen = f"found files of samples that end with {', '.join('.' + suffix for suffix in suffixes)}{fields}"
        if caption is not None:
            self.choice.require(texts, f"the first sample of {self.path}")

    def contents(self, hashes: HashMemo | None) -> Iterator[list[str | int]]:
        for shard in self.shards:
            yield [shard.name, sha256_of(shard, hashes)]

    def named(self) -> str:
        return f"{len(self.shards)} WebDataset {'shard' if len(self.shards) == 1 else 'shards'} of {self.path}"

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Keys, and the consecutive files of each key by suffix: `deep/a.seg.png` is `seg.png` of `deep/a`."""
        for shard in self.shards:
            members = (member for member in tar_members(shard) if not is_hidden(member[0]) and _split(member[0])[1])
            for key, files in groupby(members, lambda member: _split(member[0])[0]):
                yield from self._of_key(shard, key, files)

    def _of_key(self, shard: Path, key: str, files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """The samples of consecutive files with one key: one, or one for each image if no image has exactly this key."""
        first = list(islice(files, MAX_FILES))
        images = [name for name, _ in first if is_image_name(name)]
        own = [name for name in images if "." + _split(name)[1] in SUFFIXES]
        if own:
            if len(images) > len(own) and not self._reported:
                self._reported = True
                other = next(name for name in images if name not in own)
                logger.warning("data: images such as %s belong to the sample of %s and are not read", other, own[0])
            yield key, _sample(shard, key, chain(first, files), _split)
            return
        if not images:
            if any(_split(name)[1] in TEXTS for name, _ in first):
                yield key, _sample(shard, key, chain(first, files), _split)
            return
        common = {_split(name)[1]: data for name, data in first if _split(name)[1] in TEXTS}  # of `a.left.png`, `a.right.png`
        for stem, parts in groupby(chain(first, files), lambda member: _split_last(member[0])[0]):
            if stem != key:
                yield stem, common | _sample(shard, stem, parts, _split_last)

    def entries(self) -> Iterator[Entry]:
        for key, sample in self._samples():
            image = next((sample[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in sample), b"")
            missing = "" if image else f"none of its files is one (.{', .'.join(sorted(sample))})"
            yield Entry(printable(key), io.BytesIO(image), self._texts_of(key, sample), missing)

    def _texts_of(self, key: str, sample: dict[str, bytes]) -> Texts:
        """The texts of a sample, with those that a metadata file of a plain tar has for its image."""
        texts = _texts(key, sample)
        for suffix in sample if self._metadata else ():
            texts = {**texts, **self._metadata.get(PurePosixPath(f"{key}.{suffix}").as_posix().lower(), {})}
        return texts


def find_shards(path: str | Path) -> list[Path]:
    """The shards of a path, a folder or a pattern (`*`, `?`, `[...]`, `{000..003}`), sorted and without duplicates.

    Raises:
        ValueError: a part of the pattern matches no file, or matches a file other than a tar.
    """
    files = matching_files(path)
    if len(files) == 1 and files[0].is_dir():
        shards = [name for name in files_below(files[0]) if is_shard(name.rpartition("/")[2])]
        files = [files[0] / name for name in [name for name in shards if "/" not in name] or shards]
        if not files:
            raise ValueError(f"data: {printable(path)!r} holds no shard; expects a folder with {', '.join(SHARD_SUFFIXES)}.")
    for file in files:
        if not is_shard(file.name):
            raise ValueError(f"data: {printable(file)!r} is not a shard; expects {', '.join(SHARD_SUFFIXES)}, or a folder.")
    return sorted(set(files))


def is_shard(name: str) -> bool:
    """Whether a file name ends as that of a WebDataset shard."""
    return name.lower().endswith(SHARD_SUFFIXES) and not name.startswith(".")


def _split(name: str) -> tuple[str, str]:
    """WebDataset's key and suffix in lower case: before and after the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _split_last(name: str) -> tuple[str, str]:
    """The name before and after its last dot."""
    stem, _, suffix = name.rpartition(".")
    return stem, suffix.lower()


def _sample(
    shard: Path, key: str, files: Iterator[tuple[str, bytes]], split: Callable[[str], tuple[str, str]]
) -> dict[str, bytes]:
    """The files of one sample by suffix."""
    sample: dict[str, bytes] = {}
    for name, data in files:
        suffix = split(name)[1]
        if suffix in sample:
            named = f"the shard {printable(shard)}"
            raise ValueError(f"data: {named} cannot be read ({printable(key)}.{suffix} is in it twice).")
        sample[suffix] = data
    return sample


def _metadata(shard: Path) -> Iterator[tuple[str, Texts]]:
    """The images that the metadata files of a plain tar describe, by name in lower case, and their texts."""
    for name, data in named_members(shard, METADATA):
        for file, fields in metadata_rows(name, data, printable(shard)):
            yield (PurePosixPath(name).parent / file).as_posix().lower(), texts_of(fields)


def _texts(key: str, sample: dict[str, bytes]) -> Texts:
    """The texts of a sample: the fields of its JSON, and its text files by suffix."""
    files = {suffix: decode_text(sample[suffix]) for suffix in TEXTS if suffix in sample and suffix != "json"}
    return {**folder_text(key), **json_fields(decode_text(sample.get("json", b""))), **files}
