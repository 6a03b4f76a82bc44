"""Read the texts of images: UTF-8, JSON objects, lines, and names that may not be UTF-8."""

import json
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from gendistill.data.sources.captions import FOLDER


def decode_text(data: bytes) -> str:
    """The bytes of a caption as text; "" where they are not UTF-8 (or UTF-16 with a mark), so that it counts as missing."""
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig").strip()
    except UnicodeDecodeError:
        return ""


def json_fields(text: str) -> dict[str, str | list[str]]:
    """The texts of a JSON object by field; empty if the text is not a JSON object."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return texts_of(fields) if isinstance(fields, dict) else {}


def texts_of(fields: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """The strings, integers (as strings) and lists of strings among values by field; other values are left out."""
    texts = {name: text_of(value) for name, value in fields.items()}
    return {name: text for name, text in texts.items() if text is not None}


def text_of(value: Any) -> str | list[str] | None:
    """A string or an integer as a string, or the non-empty strings of a list; None for any other value."""
    if isinstance(value, list) and all(isinstance(item, str | None) for item in value):
        return [item.strip() for item in value if item and item.strip()]
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else None


def is_number(text: str | list[str]) -> bool:
    """Whether a text is the number of a class, which is no caption by default."""
    return isinstance(text, str) and text.lstrip("-").isdecimal()


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


def printable(name: str | os.PathLike[str]) -> str:
    """A file name for keys and messages: bytes that are not UTF-8 are written as `\\xff`, and line ends as `\\n`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


def folder_text(name: str) -> dict[str, str | list[str]]:
    """The name of an image's subfolder as the text of a field, without kohya's number of repeats (`10_cat`)."""
    folder = PurePosixPath(name).parent.name
    repeats, underscore, rest = folder.partition("_")
    text = rest if underscore and repeats.isdecimal() and rest else folder
    return {FOLDER: printable(text)} if text else {}
