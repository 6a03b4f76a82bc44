"""A plot of a page: an SVG element in the page's own ink, wide for desks and narrow for phones, or a PNG file."""

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

WIDE, NARROW = 860, 344  # CSS pixels, which are points: the text column of a desk, and of a phone
FONT_SIZE = 12
LETTER = 0.6 * FONT_SIZE  # width on average
STYLE: Any = {  # matplotlib types every key of its own
    "text.parse_math": False,  # names of models are no formulas
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
    "svg.fonttype": "none",  # text is text
}


@dataclass(frozen=True)
class Plot:
    """What `sample` puts on a figure, in points of one CSS pixel, and the words for those who do not see it.

    Args:
        sample: called once for each rendering, on a wide figure or a narrow one.
        alt: what the plot shows, in a sentence.
        height: in CSS pixels.
    """

    plot_onto: Callable[[Figure], None]
    alt: str
    height: int = 400

    def svg(self, *, narrow: bool = False) -> str:
        """An `<svg>` element to stand in a page: its ink is the colour of the text around it, its text is text."""
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
        """The wide rendering on white, with two pixels a point."""
        with _style():
            self._figure(WIDE).savefig(path, format="png", dpi=144, bbox_inches="tight", pad_inches=0.25)

    def _figure(self, width: int) -> Figure:
        figure = Figure(figsize=(width / 72, self.height / 72), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)  # measures text
        self.plot_onto(figure)
        return figure


METADATA = ("Date", "Creator", "Format", "Type")  # nothing about the machine goes into a page


@contextmanager
def _style(more: dict[str, Any] | None = None) -> Iterator[None]:
    settings: dict[Any, Any] = {**STYLE, **(more or {})}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has other fonts than we
        yield


def letters_in(figure: Figure, share: float = 0.85) -> int:
    """How many letters fit into a share of a figure's width."""
    return int(share * 72 * figure.get_figwidth() / LETTER)


def add_legend(figure: Figure) -> None:
    """Names with their colours and signs above the axes, in as many columns as fit."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    most = letters_in(figure)
    shown = [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
    columns = max(1, min(len(names), most // (max(map(len, shown)) + 5)))
    figure.legend(handles, shown, loc="outside upper left", ncols=columns, numpoints=1, handlelength=1.6)
