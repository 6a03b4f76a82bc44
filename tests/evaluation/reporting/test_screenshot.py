import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
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
    write_page,
)

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "screenshot.py"
BROWSER = any(shutil.which(name) for name in ("chromium-headless-shell", "chromium", "google-chrome", "chrome"))
LONG = "https://example.org/" + "a_long_name_without_a_space_" * 5

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on the PATH")


def shoot(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def unwieldy() -> Page:
    """Names too long for any place that they stand in, and many of all things."""
    image = np.zeros((3, 3, 32, 32), np.uint8)
    series = [Series(LONG, (Point(1, 2, label=LONG), Point(2, 1)), 1), Series(LONG, (Point(3, 1),), 2)]
    blocks = [
        Text(LONG),
        Cards([Card(LONG, LONG, LONG, 3), Card("1", "a")]),
        Notice(LONG),
        Table([Column(LONG, LONG)] * 20, [TableRow.from_cells(*[Cell(LONG, LONG, colour=4)] * 20, group=LONG)], LONG),
        Figure(curves(series, LONG, LONG, front="lower"), LONG),
        Galleries([Gallery(LONG, image, [LONG] * 3, LONG)]),
        ImageComparison([LONG] * 9, [ImageRow(LONG, image[:1].repeat(9, 0), LONG)]),
        Details(LONG, [(LONG, LONG)], opened=True),
        Details(LONG, LONG, opened=True),
    ]
    return Page(LONG, [PageSection(LONG, blocks, LONG), PageSection(LONG, [])], LONG, LONG)


@pytest.fixture(scope="module")
def files(tmp_path_factory, report_html) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "usual.html").write_text(report_html, encoding="utf-8")
    write_page(unwieldy(), folder / "unwieldy.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "width"), [("usual", 360), ("unwieldy", 360), ("unwieldy", 1400)])
def test_nothing_overflows_a_page_horizontally(tmp_path, files, name, width):
    done = shoot(files[name], "--out", tmp_path / "shot.png", "--width", width, "--height", 100)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "shot.png").size == (width, 100)


def test_an_overflowing_page_is_an_error(tmp_path):
    (tmp_path / "wide.html").write_text('<!doctype html><div style="width: 500px">wide</div>')
    done = shoot(tmp_path / "wide.html", "--out", tmp_path / "shot.png", "--width", 390)
    assert done.returncode == 1
    assert "in a window of 390" in done.stderr


@pytest.mark.parametrize(("options", "ground"), [([], "#fdfdfc"), (["--dark"], "#131417")], ids=["light", "dark"])
def test_a_page_is_rendered_in_the_colour_scheme_that_its_reader_prefers(tmp_path, options, ground):
    write_page(Page("title", [PageSection("section", [Text("text")])]), tmp_path / "report.html")
    done = shoot(tmp_path / "report.html", "--out", tmp_path / "shot.png", "--width", 390, "--scale", 2, *options)
    assert done.returncode == 0, done.stderr
    image = Image.open(tmp_path / "shot.png").convert("RGB")
    assert image.width == 780
    assert "#{:02x}{:02x}{:02x}".format(*image.getpixel((5, 5))) == ground
