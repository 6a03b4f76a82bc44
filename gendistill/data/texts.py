"""Read the texts of images: UTF-8, JSON objects, lines."""

import json
from pathlib import PurePosixPath


def decode_text(data: bytes) -> str:
    """The bytes of a caption as text; "" where they are not UTF-8, so that the caption counts as missing."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return ""


def text_fields(line: str) -> dict[str, str]:
    """The strings and integers of a JSON object by field, as strings; empty if the line is not a JSON object."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    items = fields.items() if isinstance(fields, dict) else ()
    return {name: str(value).strip() for name, value in items if isinstance(value, str | int) and not isinstance(value, bool)}


def text_lines(data: bytes, named: str) -> list[str]:
    """The lines of a UTF-8 file without line ends.

    The text is split at line ends only: `str.splitlines` would also split at U+2028, which JSON may contain.

    Raises:
        ValueError: the bytes are not UTF-8 or contain a zero byte; `named` is the name of the file in the message.
    """
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "a zero byte")
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} cannot be read ({error}); expects a UTF-8 text file.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def sidecar_caption(name: str) -> str:
    """The name of the text file with the caption of an image."""
    return PurePosixPath(name).with_suffix(".txt").as_posix()
