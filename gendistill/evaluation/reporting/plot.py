"""A plot of a page: drawn wide for desks and narrow for phones, as SVG in the page's own colours or as a PNG file."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from gendistill.evaluation.reporting.colours import DARK, LIGHT, Palette
from gendistill.runtime.files import written_aside

FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Roboto", "Arial", "Liberation Sans", "DejaVu Sans")  # of PNG files
WIDE = (860, 400)
MARGIN = 20  # of PNG files, points
NARROW = (344, 360)  # the text column of a phone of 376 px; it shrinks by a twentieth on one of 360


@dataclass(frozen=True)
class Canvas:
    """What a plot is drawn on: its size in CSS pixels, which are its points, and its colours."""

    width: int
    height: int
    narrow: bool
    palette: Palette

    @property
    def font_size(self) -> float:
        return 12 if self.narrow else 13

    @property
    def small(self) -> float:
        return 12


Draw = Callable[[Figure, Canvas], None]


@dataclass(frozen=True)
class Plot:
    """What `draw` puts on a figure, and the words for those who do not see it.

    Args:
        draw: called once for each rendering; it takes sizes and colours from the canvas.
        alt: what the plot shows, in a sentence.
        wide, narrow: width and height in CSS pixels.
    """

    draw: Draw
    alt: str
    wide: tuple[int, int] = WIDE
    narrow: tuple[int, int] = NARROW

    def svg(self, *, narrow: bool = False) -> str:
        """An `<svg>` element to stand in a page: its colours are the page's CSS variables, its text is text."""
        canvas = Canvas(*(self.narrow if narrow else self.wide), narrow, LIGHT)
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gendistill", **_settings(canvas, "DejaVu Sans")}):
            out = io.StringIO()
            _drawn(self.draw, canvas, transparent=True).savefig(out, format="svg", metadata=dict.fromkeys(METADATA))
        return _inline(out.getvalue(), self.alt, canvas)

    def figure(self, *, narrow: bool = False, dark: bool = False) -> Figure:
        """The plot as a matplotlib figure of one point a pixel."""
        canvas = Canvas(*(self.narrow if narrow else self.wide), narrow, DARK if dark else LIGHT)
        with matplotlib.rc_context(_settings(canvas, _font())):
            return _drawn(self.draw, canvas, transparent=False)

    def png(self, *, dark: bool = False, scale: float = 2) -> bytes:
        """A PNG file of the wide rendering with `scale` pixels a point and a margin around it."""
        drawn, out = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context({"savefig.facecolor": "auto"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")
            self.figure(dark=dark).savefig(drawn, format="png", dpi=72 * scale)
        ground = (DARK if dark else LIGHT).background
        ImageOps.expand(Image.open(drawn).convert("RGB"), round(MARGIN * scale), ground).save(out, "PNG", optimize=True)
        return out.getvalue()

    def save_png(self, path: Path, *, dark: bool = False, scale: float = 2) -> None:
        """`png` to a file, which is there whole or not at all.

        Raises:
            ValueError: the disk does not take it.
        """
        data = self.png(dark=dark, scale=scale)
        with written_aside(path) as aside:
            aside.write_bytes(data)


METADATA = ("Date", "Creator", "Format", "Type")  # nothing about the machine goes into a page


def _settings(canvas: Canvas, font: str) -> Any:  # matplotlib types every key of its own
    palette = canvas.palette
    return {
        "font.family": list(dict.fromkeys([font, "DejaVu Sans"])),
        "font.size": canvas.font_size,
        "text.parse_math": False,  # names of models are no formulas
        "text.color": palette.ink,
        "axes.edgecolor": palette.line,
        "axes.labelcolor": palette.muted,
        "axes.facecolor": palette.background,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.linewidth": 1.0,
        "axes.axisbelow": True,
        "axes.titlesize": canvas.font_size,
        "axes.labelsize": canvas.font_size,
        "grid.color": palette.line,
        "grid.linewidth": 1.0,
        "xtick.color": palette.line,
        "ytick.color": palette.line,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "xtick.labelsize": canvas.font_size,
        "ytick.labelsize": canvas.font_size,
        "xtick.major.size": 4,
        "ytick.major.size": 0,
        "ytick.major.pad": 6,
        "legend.fontsize": canvas.font_size,
        "legend.labelcolor": palette.ink,
    }


def _font() -> str:
    installed = set(font_manager.get_font_names())
    return next(font for font in FONTS if font in installed)


def _drawn(draw: Draw, canvas: Canvas, *, transparent: bool) -> Figure:
    figure = Figure(
        figsize=(canvas.width / 72, canvas.height / 72),
        dpi=72,
        layout="constrained",
        facecolor=canvas.palette.background,
    )
    FigureCanvasAgg(figure)  # measures text
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has other fonts than we
        draw(figure, canvas)
    if transparent:
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
    return figure


def _inline(svg: str, alt: str, canvas: Canvas) -> str:
    """Matplotlib's file as an element among others: no prologue, ids of its own, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    colours = {colour: f"var(--{name}, {colour})" for name, colour in reversed(canvas.palette.names().items())}
    prefix = "p" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def own(match: re.Match[str]) -> str:
        tag = re.sub(r"\s+", " ", match.group())
        tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in referenced else "", tag)
        tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", tag).replace("xlink:href", "href")
        tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
        tag = re.sub(r'font: ((?:\d+ )?[\d.]+px) [^;"]*', lambda m: _font_style(m[1]), tag)
        tag = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", tag)
        tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
        return re.sub(r"#[0-9a-f]{6}\b", lambda m: colours.get(m[0], m[0]), tag)

    svg = re.sub(r"<[^>]+>", own, svg)
    svg = re.sub(r">\s+<", "><", svg).strip()
    kind = "narrow" if canvas.narrow else "wide"
    opening = (
        f'<svg class="plot {kind}" role="img" aria-label="{escape(alt)}" viewBox="0 0 {canvas.width} {canvas.height}" '
        f'width="{canvas.width}" height="{canvas.height}">'
    )
    return opening + svg[svg.index(">") + 1 :]


def _font_style(shorthand: str) -> str:
    *weight, size = shorthand.split()
    return f"font-size: {size}" + (f"; font-weight: {weight[0]}" if weight else "")
