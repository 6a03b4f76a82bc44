"""A cache of rows that come from no source."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from gendistill.runtime.store import Store, StoredPart
from gendistill.runtime.stored_rows import StoredRows


def write_cache(folder: Path, parts: Iterable[Mapping[str, Tensor]]) -> StoredRows:
    """The rows of one group in `folder`, made of some rows (n, ...) by name for each part."""
    store = Store(folder, {"teacher": "tiny"})
    store.complete([store.write(number, StoredPart({"rows": rows})) for number, rows in enumerate(parts)])
    return StoredRows(store.folder)
