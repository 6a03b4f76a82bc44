"""A colour and a sign for each model, the same in plots and tables, legible on light pages and on dark ones."""

from __future__ import annotations

from collections.abc import Sequence

INK = "#000000"  # of plots; it becomes the page's own
# After Okabe & Ito 2008, of middle lightness: at least 3:1 to a light page and to a dark one. The signs differ too.
COLOURS = ("#2679d0", "#d2590f", "#15967b", "#b8569f", "#967306", "#5c87a8")
SIGNS = {"D": "◆", "o": "●", "s": "■", "^": "▲", "v": "▼", "P": "✚", "X": "✖"}  # matplotlib's markers and as text
MARKERS = tuple(SIGNS)


def colour_numbers(models: Sequence[str], reference: str | None = None) -> dict[str, int]:
    """A number for each model, given once for a whole page: 0 for `reference` (the teacher), the others in order.

    It stands for a colour and a sign. After the last colour they begin again with the first, with other signs.
    """
    others = [model for model in dict.fromkeys(models) if model != reference]
    numbers = {model: number for number, model in enumerate(others, start=1)}
    return numbers if reference is None else {reference: 0, **numbers}


def model_colour(number: int) -> str:
    """`#rrggbb`; 0 is the model that the others are held against, in ink."""
    return INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]


def model_marker(number: int) -> str:
    """The marker of a model in plots, so that colour is not all that tells models apart."""
    turns = (number - 1) // len(COLOURS)
    return MARKERS[0] if number == 0 else MARKERS[1 + (number - 1 + turns) % (len(MARKERS) - 1)]
