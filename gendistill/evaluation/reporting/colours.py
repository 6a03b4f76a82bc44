"""Two palettes, one for light pages and one for dark, whose colours have the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`: what is written, what is drawn quietly, and one for each model."""

    background: str
    ink: str
    muted: str
    line: str
    models: tuple[str, ...]

    def model(self, number: int) -> str:
        """The colour of a model: 0 is the one that the others are held against, in ink; then in turns."""
        return self.names()[colour_name(number)]

    def names(self) -> dict[str, str]:
        """Names of CSS variables, without the dashes, to colours."""
        named = {"background": self.background, "ink": self.ink, "muted": self.muted, "line": self.line}
        return named | {f"model-{number}": colour for number, colour in enumerate((self.ink, *self.models))}


# After Okabe & Ito 2008, made darker for paper and lighter for night: at least 3:1 to the background, told apart by
# lightness where hues meet for colour-blind eyes. The markers differ too.
LIGHT = Palette(
    background="#fdfdfc",
    ink="#1c1d20",
    muted="#696c72",
    line="#e3e2de",
    models=("#0b63b5", "#cf4b0c", "#12876f", "#b3529c", "#8c6a00", "#4a93c9"),
)
DARK = Palette(
    background="#131417",
    ink="#e9e8e4",
    muted="#9b9ea5",
    line="#303338",
    models=("#5aa6f5", "#ff8f52", "#33c79f", "#e58fd0", "#dcb83a", "#9ad4f7"),
)
MARKERS = ("D", "o", "s", "^", "v", "P", "X")


def colour_numbers(models: Sequence[str], reference: str | None = None) -> dict[str, int]:
    """A number for each model, given once for a whole page: 0 for `reference` (the teacher), the others in order.

    It stands for a colour and a sign. After the last colour they begin again with the first, with other signs.
    """
    others = [model for model in dict.fromkeys(models) if model != reference]
    numbers = {model: number for number, model in enumerate(others, start=1)}
    return numbers if reference is None else {reference: 0, **numbers}


def colour_name(number: int) -> str:
    """The CSS variable of a model's colour, without the dashes."""
    return "model-0" if number == 0 else f"model-{1 + (number - 1) % len(LIGHT.models)}"


def marker(number: int) -> str:
    """The sign of a model in plots, so that colour is not all that tells models apart."""
    turns = (number - 1) // len(LIGHT.models)
    return MARKERS[0] if number == 0 else MARKERS[1 + (number - 1 + turns) % (len(MARKERS) - 1)]
