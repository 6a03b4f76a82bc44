"""Reading the texts that come with pictures: UTF-8, JSON objects, files of lines."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath


def decode_text(data: bytes) -> str:
    """A caption's bytes as text; "" where they are no UTF-8, so that it counts as missing."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return ""


def text_fields(line: str) -> dict[str, str]:
    """The texts and whole numbers of a JSON object by field, as texts; none where it is no JSON object."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    items = fields.items() if isinstance(fields, dict) else ()
    return {name: str(value).strip() for name, value in items if isinstance(value, str | int) and not isinstance(value, bool)}


def text_lines(path: Path, field: str) -> list[str]:
    """The lines of a UTF-8 file without their ends.

    Split at line ends only: `str.splitlines` would also cut at U+2028, which JSON may hold.

    Raises:
        ValueError: the file cannot be read, is no UTF-8 or holds a zero byte; `field` is the option that named it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "a zero byte")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{field}: {str(path)!r} cannot be read ({error}); it takes a UTF-8 text file.") from error
    return text.split("\n")


def metadata_lines(lines: Iterable[str], name: str, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The pictures that a `metadata.jsonl` of this name speaks of, by their names in the source, with their text fields.

    Raises:
        ValueError: a line is no JSON object with `file_name`; `where` says for people which file it is.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = text_fields(line)
        if "file_name" not in fields:
            raise ValueError(f"data: line {number} of {where} takes a JSON object with `file_name`.")
        yield (PurePosixPath(name).parent / fields.pop("file_name")).as_posix(), fields


def text_beside(name: str) -> str:
    """The name of the text file of a picture."""
    return PurePosixPath(name).with_suffix(".txt").as_posix()


def with_text(fields: dict[str, str], beside: bytes | None) -> dict[str, str]:
    """A picture's text fields, and the text file beside it as `txt`, which stands in for `text`; None where there is none."""
    if beside is None:
        return fields
    text = decode_text(beside)
    return {"text": text, **fields, "txt": text}
