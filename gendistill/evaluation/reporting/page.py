"""A report as one HTML file that loads nothing: sections of blocks that know nothing of what they show.

Blocks are plain data. Text is text: whatever a user named a model or a prompt, it is escaped.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gendistill.evaluation.reporting import image_files as picture_files
from gendistill.evaluation.reporting.colours import DARK, LIGHT, Palette, colour_name, marker
from gendistill.evaluation.reporting.plot import Plot
from gendistill.runtime.files import written_aside

Facts = str | Sequence[tuple[str, str]]  # a text, or names and what they stand for


@dataclass(frozen=True)
class Text:
    """A paragraph, under a title of its own where it begins something."""

    kind: ClassVar[str] = "text"
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
    kind: ClassVar[str] = "cards"
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
    """A figure: as it is read, its interval, and as it is computed with (to find the best and to sort by).

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
    """Cells or plain texts, one a column; the first names the row. Rows of one `group` stand under its name."""

    cells: Sequence[Cell | str]
    highlight: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, rows and a sentence below.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row.cells) != len(self.columns):
                raise ValueError(f"rows[{number}]: got {len(row.cells)} cells, takes {len(self.columns)}, one a column.")

    def with_best(self) -> Table:
        """The same with the best of each column marked, of the cells with a `value`; none where all are equal."""
        best: dict[int, float] = {}
        for number, column in enumerate(self.columns):
            values = [value for row in self.rows if (value := as_cell(row.cells[number]).value) is not None]
            if column.better is not None and len(set(values)) > 1:
                best[number] = min(values) if column.better == "lower" else max(values)

        def marked(row: TableRow) -> TableRow:
            cells = [as_cell(cell) for cell in row.cells]
            marks = [cell.value is not None and cell.value == best.get(number) for number, cell in enumerate(cells)]
            return dataclasses.replace(
                row, cells=[dataclasses.replace(cell, best=mark) for cell, mark in zip(cells, marks, strict=True)]
            )

        return dataclasses.replace(self, rows=[marked(row) for row in self.rows])


@dataclass(frozen=True)
class Figure:
    """A plot in the reader's colours, wide or narrow as there is room, and what to see in it."""

    kind: ClassVar[str] = "figure"
    plot: Plot
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures uint8 (N, 3, H, W) of one model, and what was asked for, one a picture or none at all."""

    title: str
    pictures: Any
    captions: Sequence[str] = ()
    note: str = ""
    colour: int | None = None


@dataclass(frozen=True)
class Galleries:
    """Grids of the same prompts and seeds beside each other."""

    kind: ClassVar[str] = "galleries"
    galleries: Sequence[Gallery]
    columns: int = 8

    @property
    def shared_captions(self) -> Sequence[str]:
        """Where all galleries show the same prompts: these."""
        every = {tuple(gallery.captions) for gallery in self.galleries}
        return self.galleries[0].captions if len(every) == 1 else ()


@dataclass(frozen=True, eq=False)
class PictureRow:
    """One prompt drawn by each model: pictures uint8 (3, H, W), a line under each, and a note under the prompt."""

    prompt: str
    pictures: Sequence[Any]
    captions: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class PictureComparison:
    """A row a prompt, a column a model. `colours`: the models' numbers.

    Raises:
        ValueError: a row has not a picture (or, where it has captions, not a caption) a column.
    """

    kind: ClassVar[str] = "comparison"
    columns: Sequence[str]
    rows: Sequence[PictureRow]
    colours: Sequence[int] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            for name, got in (("pictures", len(row.pictures)), ("captions", len(row.captions))):
                if got != len(self.columns) and (name == "pictures" or got):
                    raise ValueError(f"rows[{number}].{name}: got {got}, takes {len(self.columns)}, one a column.")


@dataclass(frozen=True)
class Details:
    """What opens on demand: how it was done, for those who want to do it again."""

    kind: ClassVar[str] = "details"
    summary: str
    facts: Facts
    opened: bool = False


@dataclass(frozen=True)
class Notice:
    """What the reader must know before trusting what follows."""

    kind: ClassVar[str] = "warning"
    text: str


Block = Text | Cards | Table | Figure | Galleries | PictureComparison | Details | Notice


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


def as_cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("gendistill.evaluation.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _svg, "cell": as_cell, "sign": _sign, "grid": _grid, "picture": _picture, "groups": _groups}
    names = _anchors([section.title for section in page.sections])
    return environment.get_template("page.html.jinja").render(
        page=page, sections=list(zip(names, page.sections, strict=True)), light=_variables(LIGHT), dark=_variables(DARK)
    )


def write_page(page: Page, path: Path) -> None:
    """The page as a file, whole or not at all.

    Raises:
        ValueError: the disk does not take it.
    """
    html = render(page)
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")


def _variables(palette: Palette) -> Markup:
    return Markup(" ".join(f"--{name}: {colour};" for name, colour in palette.names().items()))


def _svg(plot: Plot) -> Markup:
    return Markup(plot.svg() + plot.svg(narrow=True))  # matplotlib escapes what it writes


SIGNS = {
    "D": "M6 0 12 6 6 12 0 6z",
    "s": "M1 1h10v10H1z",
    "^": "M6 1 12 11H0z",
    "v": "M0 1h12L6 11z",
    "P": "M4 0h4v4h4v4H8v4H4V8H0V4h4z",
    "X": "M3 0l3 3 3-3 3 3-3 3 3 3-3 3-3-3-3 3-3-3 3-3-3-3z",
    "o": "M6 .5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11z",
}


def _sign(number: int) -> Markup:
    """A model's sign, as plots have it, in its colour."""
    path = f'<path d="{SIGNS[marker(number)]}" fill="var(--{colour_name(number)})"/>'
    return Markup(f'<svg class="sign" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>')


def _grid(gallery: Gallery, columns: int) -> dict[str, Any]:
    array = picture_files.as_pictures(gallery.pictures)
    lossless = picture_files.crisp(array)
    image = picture_files.grid(array, columns=columns, gap=2 if lossless else 4, largest=160)
    return {
        "src": picture_files.data_uri(image, lossless=lossless),
        "crisp": lossless,
        "width": image.width,
        "height": image.height,
    }


def _picture(picture: Any) -> dict[str, Any]:
    return _grid(Gallery("", picture_files.as_pictures(picture[None])), 1)


def _groups(rows: Sequence[TableRow]) -> Iterator[tuple[str, list[TableRow]]]:
    """Neighbours of one group together."""
    run: list[TableRow] = []
    for row in rows:
        if run and row.group != run[-1].group:
            yield run[-1].group, run
            run = []
        run.append(row)
    if run:
        yield run[-1].group, run


def _anchors(titles: Sequence[str]) -> list[str]:
    """Names that links lead to, no two alike."""
    anchors: list[str] = []
    for title in titles:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        base = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "section"
        anchor, number = base, 2
        while anchor in anchors:
            anchor, number = f"{base}-{number}", number + 1
        anchors.append(anchor)
    return anchors
