"""A plot of a page: an SVG element in the page's text colour, wide for desktops and narrow for phones, or a PNG file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gendistill.evaluation.reporting.colours import INK

WIDE, NARROW = 860, 344  # CSS pixels, which are points: the widths of the text column on a desktop and on a phone
FONT_SIZE = 12
LETTER = 0.6 * FONT_SIZE  # average width
STYLE: Any = {  # matplotlib's type lists every key
    "text.parse_math": False,  # names of models are not formulas
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.titlelocation": "left",
    "xaxis.labellocation": "right",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.xmargin": 0.08,  # room for labels of points
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.axisbelow": True,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "ytick.major.size": 0,
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}


@dataclass(frozen=True)
class Plot:
    """A plot, in points of one CSS pixel, and its alternative text.

    Args:
        plot_onto: plots onto a wide or a narrow figure; called once for each rendering.
        alt: alternative text, one sentence.
        height: height in CSS pixels.
    """

    plot_onto: Callable[[Figure], None]
    alt: str
    height: int = 400

    def svg(self, *, narrow: bool = False) -> str:
        """An inline `<svg>` element in the colour of the surrounding text."""
        out, (width, kind) = io.StringIO(), (NARROW, "narrow") if narrow else (WIDE, "wide")
        with _style({"svg.hashsalt": f"{self.alt} {kind}"}):  # a page's plots share no ids
            self._figure(width).savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(METADATA))
        svg = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"', "", out.getvalue(), flags=re.DOTALL).replace(INK, "currentColor")
        opening = (
            f'<svg class="plot {kind}" role="img" aria-label="{escape(self.alt)}" viewBox="0 0 {width} {self.height}" '
            f'width="{width}" height="{self.height}" fill="currentColor">'
        )
        return opening + re.split("<svg[^>]*>", svg, maxsplit=1)[1].replace("xlink:href", "href")

    def save_png(self, path: Path) -> None:
        """Save the wide rendering on white, with two pixels per point."""
        with _style():
            self._figure(WIDE).savefig(path, format="png", dpi=144, bbox_inches="tight", pad_inches=0.25)

    def _figure(self, width: int) -> Figure:
        figure = Figure(figsize=(width / 72, self.height / 72), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        self.plot_onto(figure)
        return figure


METADATA = ("Date", "Creator", "Format", "Type")  # omitted, so that pages are reproducible and do not describe the machine


@contextmanager
def _style(more: dict[str, Any] | None = None) -> Iterator[None]:
    settings: dict[Any, Any] = {**STYLE, **(more or {})}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser may have fonts that are missing here
        yield


def letters_in(figure: Figure, fraction: float = 0.85) -> int:
    """Number of letters that fit into a fraction of a figure's width."""
    return int(fraction * 72 * figure.get_figwidth() / LETTER)


def add_legend(figure: Figure) -> None:
    """Add names with their colours and markers above the axes, in as many columns as fit."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    max_letters = letters_in(figure)
    shown = [name if len(name) <= max_letters else f"{name[: max_letters - 1]}…" for name in names]
    columns = max(1, min(len(names), max_letters // (max(map(len, shown)) + 5)))
    figure.legend(handles, shown, loc="outside upper left", ncols=columns, numpoints=1, handlelength=1.6)
