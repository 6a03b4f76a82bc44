"""A report as one self-contained HTML file: sections of generic blocks.

Blocks are plain data. All text, such as names of models and prompts, is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid

from gendistill.evaluation.reporting.colours import INK, SIGNS, model_colour, model_marker
from gendistill.evaluation.reporting.plot import Plot
from gendistill.runtime.files import atomic_write

CRISP_BELOW = 128  # pixels per side: smaller images are lossless and enlarged without interpolation
LARGEST = 160  # pixels per side of images in a page


@dataclass(frozen=True)
class Text:
    """A paragraph with an optional title."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Card:
    """A headline figure: its value, its label and a note. `colour`: a model's number."""

    value: str
    label: str
    small: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Cards:
    cards: Sequence[Card]


@dataclass(frozen=True)
class Column:
    """A column: its name, an explanation, and the better direction, shown as an arrow next to the name."""

    name: str
    explanation: str = ""
    better: Literal["lower", "higher"] | None = None
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, its interval, and its numerical value (to find the best of a column).

    Args:
        best: whether it is the best of its column.
        muted: whether it is shown in a muted colour.
        colour: number of the model that the cell names, whose marker precedes the text.
    """

    text: str
    small: str = ""
    value: float | None = None
    best: bool = False
    muted: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class TableRow:
    """Cells, one per column; the first names the row. Rows of one `group` are listed under its name."""

    cells: Sequence[Cell]
    highlight: bool = False
    group: str = ""

    @classmethod
    def from_cells(cls, *cells: Cell | str, highlight: bool = False, group: str = "") -> TableRow:
        """A row of cells and plain texts."""
        return cls([Cell(cell) if isinstance(cell, str) else cell for cell in cells], highlight, group)


@dataclass(frozen=True)
class Table:
    """Columns, rows and a caption.

    Raises:
        ValueError: the number of cells of a row differs from the number of columns.
    """

    columns: Sequence[Column]
    rows: Sequence[TableRow]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row.cells) != len(self.columns):
                raise ValueError(f"rows[{number}]: got {len(row.cells)} cells, expects {len(self.columns)}, one per column.")

    def with_best(self) -> Table:
        """The table with the best `value` of each column marked; columns of equal values have no mark."""
        marked = []
        for column, cells in zip(self.columns, zip(*(row.cells for row in self.rows), strict=True), strict=True):
            values = [cell.value for cell in cells if cell.value is not None]
            best = None
            if column.better and len(set(values)) > 1:
                best = min(values) if column.better == "lower" else max(values)
            marked.append([dataclasses.replace(cell, best=best is not None and cell.value == best) for cell in cells])
        rows = zip(self.rows, zip(*marked, strict=True), strict=True)
        return dataclasses.replace(self, rows=[dataclasses.replace(row, cells=cells) for row, cells in rows])

    @property
    def explained(self) -> Details:
        facts = [(column.name, column.explanation) for column in self.columns if column.explanation]
        return Details("What the columns mean", facts)

    def groups(self) -> Iterator[tuple[str, Iterator[TableRow]]]:
        """Groups of consecutive rows, by name."""
        return itertools.groupby(self.rows, lambda row: row.group)


@dataclass(frozen=True)
class Figure:
    """A plot in the reader's colour scheme, in a wide and a narrow version, and a caption."""

    plot: Plot
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images uint8 (N, 3, H, W) of one model, and their prompts, one per image or none at all."""

    title: str
    images: Any
    captions: Sequence[str] = ()
    note: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Galleries:
    """Grids of the same prompts and seeds side by side."""

    galleries: Sequence[Gallery]
    columns: int = 8

    @property
    def captions(self) -> Sequence[str]:
        """Captions of the largest grid; smaller grids have its first captions."""
        return max((gallery.captions for gallery in self.galleries), key=len)


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One prompt sampled by each model: images uint8 (3, H, W), and a note after the prompt."""

    prompt: str
    images: Sequence[Any]
    note: str = ""


@dataclass(frozen=True)
class ImageComparison:
    """A grid with one row per prompt and one column per model."""

    columns: Sequence[str]
    rows: Sequence[ImageRow]


@dataclass(frozen=True)
class Details:
    """A collapsible block with a text, or with names and values, such as an evaluation protocol."""

    summary: str
    facts: str | Sequence[tuple[str, str]]
    opened: bool = False


@dataclass(frozen=True)
class Notice:
    """A warning before the figures that it applies to."""

    text: str


Block = Text | Cards | Table | Figure | Galleries | ImageComparison | Details | Notice


@dataclass(frozen=True)
class PageSection:
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    sections: Sequence[PageSection]
    subtitle: str = ""
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML.

    Raises:
        ValueError: images are not uint8 (N, 3, H, W), or there are none.
    """
    environment = Environment(
        loader=PackageLoader("gendistill.evaluation.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _svg, "sign": _sign, "image": _image}
    return environment.get_template("page.html.jinja").render(page=page)


def write_page(page: Page, path: Path) -> None:
    """Write the page to a file atomically.

    Raises:
        ValueError: as `render`, or the file cannot be written.
    """
    html = render(page)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _svg(plot: Plot) -> Markup:
    return Markup(plot.svg() + plot.svg(narrow=True))  # matplotlib escapes what it writes


def _sign(number: int | None) -> Markup:
    """A model's marker, as in plots, in its colour; empty for None."""
    if number is None:
        return Markup("")
    colour = model_colour(number).replace(INK, "currentColor")
    return Markup(f'<span class="sign" style="color: {colour}" aria-hidden="true">{SIGNS[model_marker(number)]}</span>')


def _image(images: Any, alt: str, columns: int = 1) -> Markup:
    """An `<img>` of images uint8 (N, 3, H, W), or of one (3, H, W), row by row on a transparent background.

    Small images are lossless PNGs without interpolation; large ones are resized to WebP, a twentieth of PNG's size.
    """
    tensor = torch.as_tensor(images)
    tensor = tensor[None] if tensor.ndim == 3 else tensor
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[1] != 3 or 0 in tensor.shape:
        raise ValueError(f"images: got {tensor.dtype} {tuple(tensor.shape)}, expects uint8 (N, 3, H, W) with at least 1.")
    side = max(tensor.shape[2:])
    crisp, scale = side < CRISP_BELOW, min(1, LARGEST / side)
    tensor = resize(tensor, [round(scale * length) for length in tensor.shape[2:]], antialias=True)
    opaque = torch.cat([tensor, torch.full_like(tensor[:, :1], 255)], 1)
    image, out = to_pil_image(make_grid(opaque, nrow=columns)), io.BytesIO()
    image.save(out, "PNG" if crisp else "WEBP", quality=85)
    source = f"data:image/{'png' if crisp else 'webp'};base64,{base64.b64encode(out.getvalue()).decode()}"
    shown = Markup('<img src="{}" width="{}" height="{}" alt="{}" class="{}">')
    return shown.format(source, image.width, image.height, alt, "crisp" if crisp else "")
