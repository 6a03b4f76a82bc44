"""Sizes of images in settings: one number for squares, otherwise WIDTHxHEIGHT."""

from __future__ import annotations

import re

MIN_EDGE = 8  # pixels


def size_of(text: int | str) -> tuple[int, int]:
    """Height and width; raises ValueError if the text is no size, or an edge is below `MIN_EDGE`."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text))
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(height, width) < MIN_EDGE:
        raise ValueError(f"the edge of squares, or WIDTHxHEIGHT, of at least {MIN_EDGE} pixels, such as 512 or 768x512")
    return height, width


def written_size(size: tuple[int, int]) -> str:
    """A size (height, width) as text."""
    height, width = size
    return str(height) if height == width else f"{width}x{height}"
