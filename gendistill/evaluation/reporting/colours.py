"""A colour and a marker for each model, the same in plots and tables, legible on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence

INK = "#000000"  # text and lines of plots, replaced by the page's text colour
# After Okabe & Ito 2008, of medium lightness: contrast of at least 3:1 on light and on dark pages. The markers differ too.
COLOURS = ("#2679d0", "#d2590f", "#15967b", "#b8569f", "#967306", "#5c87a8")
SIGNS = {"D": "◆", "o": "●", "s": "■", "^": "▲", "v": "▼", "P": "✚", "X": "✖"}  # matplotlib's markers and their characters
MARKERS = tuple(SIGNS)


def colour_numbers(models: Sequence[str], reference: str | None = None) -> dict[str, int]:
    """The colour number of each model of a page: 0 for `reference` (the teacher), then the others in order.

    A number stands for a colour and a marker. After the last colour the colours repeat with other markers.
    """
    others = [model for model in dict.fromkeys(models) if model != reference]
    numbers = {model: number for number, model in enumerate(others, start=1)}
    return numbers if reference is None else {reference: 0, **numbers}


def model_colour(number: int) -> str:
    """`#rrggbb` of a model; 0, the baseline, has the text colour."""
    return INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]


def model_marker(number: int) -> str:
    """The marker of a model in plots, which distinguishes models without colour."""
    cycles = (number - 1) // len(COLOURS)
    return MARKERS[0] if number == 0 else MARKERS[1 + (number - 1 + cycles) % (len(MARKERS) - 1)]
