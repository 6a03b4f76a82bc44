"""Files with the captions of many images: `metadata.jsonl`, `metadata.csv` and `metadata.parquet`, as in `imagefolder`."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from gendistill.data.texts import text_lines

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LISTS = (".jsonl", ".csv")  # of a list of images anywhere
# Names of the field with an image's file, the preferred first.
FILE_FIELDS = ("file_name", "filename", "image_file_name", "image_path", "file_path", "path", "file", "image")


def metadata_rows(name: str, data: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file name and the other fields of each image in a metadata file; values are those of JSON.

    Args:
        name: name of the file, whose suffix is its format.
        where: the folder or archive, for messages.

    Raises:
        ValueError: the file cannot be read, or an image has no file name.
    """
    for line, fields in _read(name, data, f"{name} in {where}"):
        file_field = next((field for field in FILE_FIELDS if _is_name(fields.get(field))), None)
        if file_field is None:
            got = f" (got the fields {', '.join(map(str, fields))})" if fields else ""
            raise ValueError(f"data: line {line} of {name} in {where} expects an object with `file_name`{got}.")
        file = fields.pop(file_field).strip()
        yield PurePosixPath(file.replace("\\", "/")).as_posix(), fields


def _read(name: str, data: bytes, named: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file, from 1, and their fields."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet  # from an extra

        try:
            rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"data: {named} cannot be read ({str(error).splitlines()[0]}); expects a parquet file.") from error
        yield from enumerate(rows, start=1)
        return
    lines = text_lines(data, f"data: {named}")
    if suffix == ".jsonl":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _json_object(line)
        return
    delimiter = max(",;\t", key=lines[0].count)
    csv.field_size_limit(2**24)
    reader = csv.DictReader(io.StringIO("\n".join(lines), newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for fields in reader:
            yield reader.line_num, {name.strip(): value for name, value in fields.items() if name and isinstance(value, str)}
    except csv.Error as error:
        raise ValueError(f"data: line {reader.line_num} of {named} cannot be read ({error}); expects CSV.") from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _json_object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
