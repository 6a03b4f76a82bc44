"""A cache of rows that come from no source."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from gendistill.data.cache.row_cache import Cache, Part, write_index, write_part


def write_cache(folder: Path, parts: Iterable[Mapping[str, Tensor]]) -> Cache:
    """The cache of one group in `folder`, made of some rows (n, ...) by name for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    described = [write_part(folder, number, Part({"rows": rows})) for number, rows in enumerate(parts)]
    write_index(folder, described, "k", {"teacher": "tiny"})
    return Cache.open(folder)
