import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from invented_page import page
from PIL import Image

from gendistill.evaluation.reporting.curves import Point, Series, curves
from gendistill.evaluation.reporting.page import (
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Galleries,
    Gallery,
    ImageComparison,
    ImageRow,
    Notice,
    Page,
    PageSection,
    Table,
    TableRow,
    Text,
    render,
    write_page,
)

MARKUP = "<script>alert(1)</script> \" ' & {{ 7 * 7 }}"
OPEN = {"meta", "img", "path", "br", "use"}  # elements without an end


class Elements(HTMLParser):
    """Every element with its attributes, every text with the elements around it, and whether all that opens closes."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.stack: list[str] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in OPEN:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in OPEN:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self.stack), data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    def within(self, tag: str) -> str:
        return "\n".join(text for stack, text in self.texts if tag in stack)


@pytest.fixture(scope="module")
def elements(report_html) -> Elements:
    return Elements(report_html)


def one_block(block) -> str:
    return render(Page("title", [PageSection("section", [block])]))


def test_a_page_loads_nothing_and_runs_nothing(report_html, elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in elements.found)
    assert "@import" not in report_html
    assert not re.search(r"url\((?!#)", report_html)


def test_a_complete_report_stays_small(report_html):
    assert len(report_html.encode()) < 1.5e6


def test_every_link_leads_to_a_section_of_the_page_and_ids_are_unique(elements):
    places = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(places) == len(set(places))
    links = [attributes["href"] for attributes in elements.all("a")]
    assert len(links) == len(page().sections)
    assert {link.removeprefix("#") for link in links} <= set(places)


def test_the_dark_palette_has_every_colour_of_the_light_one(report_html):
    light, dark = report_html.split("@media (prefers-color-scheme: dark)", 1)
    assert set(re.findall(r"--([a-z]+): #", light)) == set(re.findall(r"--([a-z]+): #", dark))
    assert '<meta name="color-scheme" content="light dark">' in light


def test_every_colour_that_a_page_names_is_defined_and_none_of_its_plots_is_white(report_html):
    style = report_html[: report_html.index("</style>")]
    used = set(re.findall(r"var\(--([a-z0-9-]+)", report_html)) - {"models"}  # set where it is used
    assert used <= set(re.findall(r"--([a-z0-9-]+):", style))
    assert "#fff" not in report_html[report_html.index("</style>") :].lower()


def test_every_plot_has_a_desktop_and_a_phone_version(elements):
    plots = [attributes["class"] for attributes in elements.all("svg") if "plot" in (attributes.get("class") or "")]
    figures = [block for section in page().sections for block in section.blocks if isinstance(block, Figure)]
    assert plots == ["plot wide", "plot narrow"] * len(figures)
    assert all(attributes["aria-label"] for attributes in elements.all("svg") if attributes.get("role") == "img")


def test_names_from_users_are_escaped_everywhere():
    image = np.zeros((1, 3, 4, 4), np.uint8)
    blocks = [
        Text(MARKUP),
        Cards([Card(MARKUP, MARKUP, MARKUP)]),
        Table([Column(MARKUP, MARKUP)], [TableRow.from_cells(Cell(MARKUP, MARKUP), group=MARKUP)], MARKUP),
        Figure(curves([Series(MARKUP, (Point(1, 1), Point(2, 2)), 1)], MARKUP, MARKUP), MARKUP),
        Galleries([Gallery(MARKUP, image, [MARKUP], MARKUP)]),
        ImageComparison([MARKUP], [ImageRow(MARKUP, [image[0]], MARKUP)]),
        Details(MARKUP, [(MARKUP, MARKUP)]),
        Details(MARKUP, MARKUP),
        Notice(MARKUP),
    ]
    html = render(Page(MARKUP, [PageSection(MARKUP, blocks, MARKUP)], MARKUP, MARKUP))
    parsed = Elements(html)
    assert not parsed.all("script")
    assert "49" not in parsed.within("p")
    for tag in ("title", "h1", "h2", "nav", "footer", "figcaption", "summary", "dd", "dt", "li", "th", "small", "b"):
        assert MARKUP in parsed.within(tag), tag
    assert [attributes["title"] for attributes in parsed.all("abbr")] == [MARKUP]


def test_a_table_shows_every_cell_heading_and_explanation(elements):
    table = next(block for block in page().sections[0].blocks if isinstance(block, Table))
    shown = [text.strip() for stack, text in elements.texts if "table" in stack]
    for row in table.rows:
        for cell in row.cells:
            assert cell.text in shown
            assert not cell.small or cell.small in shown
    heads = elements.within("thead")
    for column in table.columns:
        assert column.name in heads
        assert column.explanation in elements.within("dd")
    assert len(elements.all("td")) == len(table.rows) * (len(table.columns) - 1)
    for group in {row.group for row in table.rows}:
        assert shown.count(group) == 1


def test_the_best_of_a_column_is_marked_whichever_way_is_better():
    columns = [
        Column("model"),
        Column("fd", better="lower"),
        Column("clip", better="higher"),
        Column("steps"),
        Column("same", better="lower"),
    ]
    values = [(3.0, 60.0, 4.0, 1.0), (2.0, 61.0, 2.0, 1.0), (2.0, 59.0, 1.0, 1.0)]
    rows = [TableRow.from_cells("m", *(Cell(str(value), value=value) for value in row)) for row in values]
    table = Table(columns, [*rows, TableRow.from_cells("unknown", "", Cell("99"), "", "")]).with_best()
    marks = [[cell.best for cell in row.cells] for row in table.rows]
    assert marks == [
        [False, False, False, False, False],
        [False, True, True, False, False],
        [False, True, False, False, False],
        [False] * 5,
    ]
    assert one_block(table).count('<b class="best">') == 3


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"rows\[1\]: got 1 cells, expects 2, one per column\."):
        Table([Column("a"), Column("b")], [TableRow.from_cells("1", "2"), TableRow.from_cells("1")])


def test_common_prompts_of_galleries_are_all_listed_once():
    image = np.zeros((2, 3, 4, 4), np.uint8)
    shared = Galleries([Gallery("a", image[:1], ["p"]), Gallery("b", image, ["p", "q"])])
    assert len(Elements(one_block(shared)).all("li")) == 2


def test_small_images_are_crisp_and_large_ones_are_made_smaller():
    small = one_block(Galleries([Gallery("a", np.zeros((3, 3, 64, 64), np.uint8))]))
    noise = torch.randint(0, 256, (16, 3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = one_block(Galleries([Gallery("a", noise)]))
    assert 'class="crisp"' in small
    assert "data:image/png" in small
    assert 'class="crisp"' not in large
    assert "data:image/webp" in large
    assert len(large) < 700_000  # 12 MB as they are


def test_a_grid_holds_every_pixel_and_nothing_between():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 4), np.uint8)
    html = one_block(Galleries([Gallery("a", images)], columns=2))
    data = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", html).group(1))
    array = np.asarray(Image.open(io.BytesIO(data)))
    assert array.shape == (3 * 8 + 2, 2 * 6 + 2, 4)
    opaque = np.zeros(array.shape[:2], bool)
    for number, image in enumerate(images):
        place = (slice(top := 2 + number // 2 * 8, top + 6), slice(left := 2 + number % 2 * 6, left + 4))
        assert (array[place][..., :3] == image.transpose(1, 2, 0)).all()
        opaque[place] = True
    assert (array[..., 3] == 255 * opaque).all()


@pytest.mark.parametrize("wrong", [np.zeros((0, 3, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 3, 4, 4))])
def test_arrays_that_are_not_images_are_an_error(wrong):
    with pytest.raises(ValueError, match=r"images: got .*, expects uint8"):
        one_block(Galleries([Gallery("a", wrong)]))


def test_a_page_is_written_atomically(tmp_path):
    short = Page("t", [PageSection("s", [Figure(curves([Series("a", (Point(1, 1), Point(2, 2)), 1)], "x", "y"))])])
    write_page(short, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(short)  # and the same twice
    broken = Page("t", [PageSection("s", [Galleries([Gallery("g", np.zeros((0, 3, 4, 4), np.uint8))])])])
    with pytest.raises(ValueError, match="images: got"):
        write_page(broken, tmp_path / "report.html")
    with pytest.raises(ValueError, match="cannot be written"):
        write_page(Page("t", []), tmp_path / "nowhere" / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(short)
    assert len(list(tmp_path.iterdir())) == 1
