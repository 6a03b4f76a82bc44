"""Reading the texts that come with images: UTF-8, JSON objects, lines."""

import json
from pathlib import PurePosixPath


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


def text_lines(data: bytes, named: str) -> list[str]:
    """The lines of a UTF-8 file without their ends.

    Split at line ends only: `str.splitlines` would also cut at U+2028, which JSON may hold.

    Raises:
        ValueError: the bytes are no UTF-8 or hold a zero byte; `named` says for people where they come from.
    """
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "a zero byte")
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} cannot be read ({error}); it expects a UTF-8 text file.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def sidecar_caption(name: str) -> str:
    """The name of the text file of an image."""
    return PurePosixPath(name).with_suffix(".txt").as_posix()
