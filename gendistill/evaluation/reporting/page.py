"""A report as one HTML file that loads nothing: sections of blocks that know nothing of what they show.

Blocks are plain data. Text is text: whatever a user named a model or a prompt, it is escaped.
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

CRISP_BELOW = 128  # pixels a side: smaller images are enlarged by whole pixels, lossless
LARGEST = 160  # pixels a side of images in a page


@dataclass(frozen=True)
class Text:
    """A paragraph, under a title of its own where it begins something."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Card:
    """A headline figure: the value, what it is, and what it is to be read with. `colour`: a model's number."""

    value: str
    label: str
    small: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Cards:
    """Figures that are shown large, side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Column:
    """A column's name, what it means in a sentence, and which way is better, as an arrow says beside the name."""

    name: str
    explanation: str = ""
    better: Literal["lower", "higher"] | None = None
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Cell:
    """A figure: as it is read, its interval, and as it is computed with (to find the best by).

    Args:
        best: of its column.
        muted: known, but not what one should look at.
        colour: the number of the model that the cell names, whose sign stands before it.
    """

    text: str
    small: str = ""
    value: float | None = None
    best: bool = False
    muted: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class TableRow:
    """Cells, one a column; the first names the row. Rows of one `group` stand under its name."""

    cells: Sequence[Cell]
    highlight: bool = False
    group: str = ""

    @classmethod
    def of(cls, *cells: Cell | str, highlight: bool = False, group: str = "") -> TableRow:
        """A row of cells and plain texts."""
        return cls([Cell(cell) if isinstance(cell, str) else cell for cell in cells], highlight, group)


@dataclass(frozen=True)
class Table:
    """Columns, rows and a sentence below.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """

    columns: Sequence[Column]
    rows: Sequence[TableRow]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row.cells) != len(self.columns):
                raise ValueError(f"rows[{number}]: got {len(row.cells)} cells, expects {len(self.columns)}, one a column.")

    def with_best(self) -> Table:
        """The same with the best of each column marked, of the cells with a `value`; none where all are equal."""
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
        return Details("What the columns mean", [(one.name, one.explanation) for one in self.columns if one.explanation])

    def groups(self) -> Iterator[tuple[str, Iterator[TableRow]]]:
        """Neighbouring rows of one group together."""
        return itertools.groupby(self.rows, lambda row: row.group)


@dataclass(frozen=True)
class Figure:
    """A plot in the reader's colours, wide or narrow as there is room, and what to see in it."""

    plot: Plot
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images uint8 (N, 3, H, W) of one model, and what was asked for, one an image or none at all."""

    title: str
    images: Any
    captions: Sequence[str] = ()
    note: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Galleries:
    """Grids of the same prompts and seeds beside each other."""

    galleries: Sequence[Gallery]
    columns: int = 8

    @property
    def captions(self) -> Sequence[str]:
        """Of the largest grid, whose beginning the others are."""
        return max((gallery.captions for gallery in self.galleries), key=len)


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One prompt sampled by each model: images uint8 (3, H, W), and a note under the prompt."""

    prompt: str
    images: Sequence[Any]
    note: str = ""


@dataclass(frozen=True)
class ImageComparison:
    """A row a prompt, a column a model."""

    columns: Sequence[str]
    rows: Sequence[ImageRow]


@dataclass(frozen=True)
class Details:
    """What opens on demand, a text or names and what they stand for: how it was done, for those who want to do it again."""

    summary: str
    facts: str | Sequence[tuple[str, str]]
    opened: bool = False


@dataclass(frozen=True)
class Notice:
    """What the reader must know before trusting what follows."""

    text: str


Block = Text | Cards | Table | Figure | Galleries | ImageComparison | Details | Notice


@dataclass(frozen=True)
class PageSection:
    """A section of a page: its title, a sentence, and its blocks."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A complete report."""

    title: str
    sections: Sequence[PageSection]
    subtitle: str = ""
    footer: str = ""


def render(page: Page) -> str:
    """The page as HTML.

    Raises:
        ValueError: what should be images is not uint8 (N, 3, H, W), or there is none.
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
    """The page as a file, whole or not at all.

    Raises:
        ValueError: the disk does not take it.
    """
    html = render(page)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _svg(plot: Plot) -> Markup:
    return Markup(plot.svg() + plot.svg(narrow=True))  # matplotlib escapes what it writes


def _sign(number: int | None) -> Markup:
    """A model's sign, as plots have it, in its colour; nothing for no model."""
    if number is None:
        return Markup("")
    colour = model_colour(number).replace(INK, "currentColor")
    return Markup(f'<span class="sign" style="color: {colour}" aria-hidden="true">{SIGNS[model_marker(number)]}</span>')


def _image(images: Any, alt: str, columns: int = 1) -> Markup:
    """An `<img>` of images uint8 (N, 3, H, W), or of one (3, H, W), row by row on a transparent ground.

    Small ones are lossless and shown by whole pixels, large ones made smaller and WebP, a twentieth of PNG's size.
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
