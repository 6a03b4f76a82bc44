"""PNG files that name this program as their writer, so that they can be replaced, and others are not."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gendistill.runtime.files import atomic_write, require_new

WRITER = "gendistill"


def save_own_png(image: Image.Image, file: Path) -> None:
    """Write a PNG atomically, in place of an earlier one of this program.

    Raises:
        ValueError: the file cannot be written, or another program has written it.
    """
    require_new(file, "out", is_own_png)
    info = PngInfo()
    info.add_text("Software", WRITER)
    with atomic_write(file) as temporary:
        image.save(temporary, format="png", pnginfo=info)


def is_own_png(file: Path) -> bool:
    """Whether this program has written an image."""
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == WRITER
    except (OSError, ValueError, SyntaxError):
        return False
