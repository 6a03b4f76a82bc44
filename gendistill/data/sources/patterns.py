"""Files of a path, or of a pattern with `*`, `?`, `[...]`, `{a,b}` and `{000..003}`."""

import glob
import os
import re
from pathlib import Path

TABLES = (".parquet", ".arrow")  # endings of files that `datasets` reads
SAVED = ("state.json", "dataset_dict.json")  # files in a folder of `datasets`' save_to_disk


def matching_files(path: str | Path) -> list[Path]:
    """The file or folder at `path`, or the sorted files that match it; the part that exists is not read as a pattern.

    Raises:
        ValueError: nothing is there, the pattern matches nothing, or a brace is not closed.
    """
    local = Path(path).expanduser()
    if local.exists():
        return [local]
    if local.is_symlink():
        raise ValueError(f"data: {str(path)!r} is a link to {os.readlink(local)!r}, which does not exist.")
    fixed = next(folder for folder in local.parents if folder.exists())
    rest = str(local.relative_to(fixed))
    return sorted({file for pattern in _expanded(rest) for file in _matches(fixed, pattern)})


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


def _matches(folder: Path, pattern: str) -> list[Path]:
    literal = folder / pattern
    found = [str(literal)] if literal.exists() else glob.glob(os.path.join(glob.escape(str(folder)), pattern), recursive=True)
    if not found:
        reason = "matches no file" if glob.has_magic(pattern) else "does not exist"
        raise ValueError(
            f"data: {str(literal)!r} {reason}; expects a folder, an archive, a dataset, a list of "
            "images or a .txt of prompts, or a pattern of files."
        )
    return [Path(name) for name in found]
