import functools
import itertools
import random
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from invented_page import costs, fractions, groups, guidance
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image

from gendistill.evaluation.reporting.colours import COLOURS, colour_numbers, model_colour, model_marker
from gendistill.evaluation.reporting.curves import Point, Series, curves, on_front
from gendistill.evaluation.reporting.plot import NARROW, WIDE
from gendistill.evaluation.reporting.rows import PlottedValue, by_row

FD = "fd-emoji, lower is better"
LIGHT_PAGE, DARK_PAGE = ("#fdfdfc", "#1c1d20"), ("#131417", "#e9e8e4")  # ground and ink


def crowd(count: int) -> list[Series]:
    """Models whose curves run through each other."""
    generator = random.Random(count)
    return [
        Series(
            f"runs/2026-11-{number:02d}/a model of a long name",
            tuple(Point(steps, 1 + 8 * generator.random() / steps, 0.5, 9, str(steps)) for steps in (1, 2, 4, 8, 16)),
            number,
        )
        for number in range(count)
    ]


PLOTS = {
    "front": curves(costs("ms"), "milliseconds per image", FD, x_log=True, y_log=True, front="lower"),
    "front, linear": curves(costs("ms"), "milliseconds", FD, y_log=True, front="lower"),
    "steps": curves(costs("steps"), "steps", "fd-emoji", x_log=True),
    "guidance": curves(guidance(), "CLIP score", "fd-emoji"),
    "a long name": curves(
        guidance(), "CLIP score", "fd-emoji, lower is better, of 2,000 images of 754 prompts against 754 real ones"
    ),
    "one point": curves([Series("tiny-sd", (Point(1, 7.0),), 0)], "steps", "fd", x_log=True, y_log=True),
    "near": curves([Series("a", (Point(5, 1.1), Point(6, 1.3)), 1)], "ms", "fd", x_log=True, y_log=True),
    "far": curves([Series("a", (Point(0.01, 0.5), Point(900, 80_000)), 1)], "ms", "fd", x_log=True, y_log=True),
    "crowded front": curves(crowd(9), "ms", "fd", x_log=True, front="lower"),
    "crowded lines": curves(crowd(9), "steps", "fd", x_log=True, y_log=True),
    "all steps": curves([Series("a", tuple(Point(n, 1 / n) for n in range(1, 65)), 1)], "steps", "fd", x_log=True),
    "groups": groups(),
    "one group": by_row("distance", ["a" * 99], {"a": [PlottedValue(1.0)], "b": [PlottedValue(1.0)]}, [0, 1]),
    "one model": by_row("drift", ["mean", "spread (Bures)"], {"a": [PlottedValue(1.0), PlottedValue(1e-3)]}, [1]),
    "fractions": fractions(),
}


@functools.cache
def svg_of(name: str, *, narrow: bool) -> str:
    return PLOTS[name].svg(narrow=narrow)


def written(svg: str) -> list[tuple[str, np.ndarray]]:
    """Each text of an SVG and its box x0 y0 x1 y1, y downwards, measured in the widest of the usual fonts."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        if element.tag.split("}")[-1] != "text":
            continue
        style = dict(part.strip().split(": ", 1) for part in element.attrib["style"].rstrip("; ").split(";"))
        size = float(style["font-size"].removesuffix("px"))
        font = FontProperties(family="DejaVu Sans", weight=int(style.get("font-weight", 400)))
        width = TextPath((0, 0), element.text, size=size, prop=font).get_extents().x1
        moved = re.fullmatch(r"translate\(([\d.-]+) ([\d.-]+)\)", element.attrib.get("transform", ""))  # lines of a long text
        x, y = map(float, moved.groups() if moved else (element.attrib["x"], element.attrib["y"]))
        x0 = x - width * {"start": 0, "middle": 0.5, "end": 1}[style.get("text-anchor", "start")]
        found.append((element.text, np.array([x0, y - 0.73 * size, x0 + width, y + 0.2 * size])))
    return found


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", PLOTS)
def test_texts_of_a_plot_neither_overlap_nor_overflow(name, narrow):
    plot = PLOTS[name]
    texts = written(svg_of(name, narrow=narrow))
    width, height = NARROW if narrow else WIDE, plot.height
    assert len(texts) >= 4
    for text, (x0, y0, x1, y1) in texts:
        assert min(x0, y0) >= -1, text
        assert x1 <= width + 1, text
        assert y1 <= height + 1, text
    for (a, box), (b, other) in itertools.combinations(texts, 2):
        apart = (box[2:] <= other[:2] + 1) | (other[2:] <= box[:2] + 1)
        assert apart.any(), (a, b)


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", PLOTS)
def test_text_is_at_least_11_pixels_high_on_a_phone_of_360(name, narrow):
    shown = 328 / NARROW if narrow else 768 / WIDE  # wide from 800 pixels on
    sizes = [float(size) * shown for size in re.findall(r"font-size: ([\d.]+)px", svg_of(name, narrow=narrow))]
    assert sizes
    assert min(sizes) >= (11 if narrow else 10.5)


def test_a_plot_has_the_text_colour_of_its_page_and_the_colours_of_its_models():
    svg = svg_of("front", narrow=False)
    assert "currentColor" in svg
    left = re.sub(r"(href=\"#|id=\"|url\(#)[^\")]*", "", svg)
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", left)) == {model_colour(1), model_colour(2)}


def test_plots_of_a_page_share_no_ids_and_refer_to_their_own():
    names = []
    for name, narrow in itertools.product(PLOTS, (False, True)):
        svg = svg_of(name, narrow=narrow)
        own = set(re.findall(r' id="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) == own
        names.append(own)
    for a, b in itertools.combinations(names, 2):
        assert not a & b


def test_text_from_a_user_is_neither_markup_nor_formula(tmp_path):
    name = '<script>alert(\'$x^2$ & "$")</script> 0.123456'
    plot = curves([Series(name, (Point(1, 2), Point(2, 3)), 1), Series("$\\broken{$", (Point(1, 1),), 2)], "x", "y")
    svg = plot.svg(narrow=True)
    assert "<script" not in svg
    assert "&lt;script&gt;alert('$x^2$" in svg
    plot.save_png(tmp_path / "plot.png")


def test_the_front_has_the_points_that_no_other_point_dominates():
    points = [Point(1, 9), Point(2, 5), Point(2, 6), Point(3, 5), Point(4, 1), Point(5, 3), Point(4, 1)]
    assert on_front(points) == [Point(1, 9), Point(2, 5), Point(4, 1), Point(4, 1)]
    mirrored = [Point(point.x, -point.y) for point in points]
    assert [(p.x, -p.y) for p in on_front(mirrored, "higher")] == [(p.x, p.y) for p in on_front(points)]


def test_the_front_of_random_points_falls_and_dominates_all_others():
    generator = random.Random(0)
    points = [Point(generator.random(), generator.random()) for _ in range(200)]
    front = on_front(points)
    assert [p.y for p in front] == sorted((p.y for p in front), reverse=True)
    for point in points:
        assert point in front or any(f.x <= point.x and f.y <= point.y for f in front)


@pytest.mark.parametrize("name", ["front", "near", "far", "one point", "all steps"])
def test_an_axis_has_some_numbers_and_not_too_many(name):
    for narrow in (False, True):
        figures = [text for text, _ in written(svg_of(name, narrow=narrow)) if re.fullmatch(r"[\d.e+]+", text)]
        assert len(set(figures)) >= 2
        assert len(figures) <= 40


def luminance(colour: str) -> float:
    channels = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", [LIGHT_PAGE, DARK_PAGE], ids=["light", "dark"])
def test_colours_have_the_contrast_that_wcag_requires(page):
    for colour in COLOURS:
        light, dark = sorted((luminance(colour), luminance(page[0])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


# Machado, Oliveira & Fernandes 2009, full severity
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("kind", BLIND)
@pytest.mark.parametrize("page", [LIGHT_PAGE, DARK_PAGE], ids=["light", "dark"])
def test_the_first_colours_differ_for_colour_blind_readers(page, kind):
    colours = [page[1], *COLOURS[:3]]
    seen = [np.array(BLIND[kind]) @ [int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in colours]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 60


def test_every_model_has_its_own_combination_of_colour_and_marker():
    numbers = colour_numbers(["a", "teacher", "b", "a"], reference="teacher")
    assert numbers == {"teacher": 0, "a": 1, "b": 2}
    styles = {(model_colour(number), model_marker(number)) for number in range(20)}
    assert len(styles) == 20


def test_a_plot_is_saved_as_a_png_with_two_pixels_per_point(tmp_path):
    PLOTS["steps"].save_png(tmp_path / "plot.png")
    image = Image.open(tmp_path / "plot.png").convert("RGB")
    assert image.width == pytest.approx(2 * WIDE, rel=0.1)
    assert image.getpixel((1, 1)) == (255, 255, 255)


def test_the_alternative_text_of_a_plot_has_every_model_and_its_figures():
    assert "tiny-sd from 28.5 at 1 to 1.08 at 50" in PLOTS["steps"].alt
    assert "light: tiny-sd 0.21, consistency 0.27" in PLOTS["fractions"].alt


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        ([], "series: got one without points"),
        ([Series("a", (), 0)], "series: got one without points"),
        ([Series("a", (Point(1, float("nan")),), 0)], "a, y: got nan, expects a finite number."),
        ([Series("a", (Point(0, 1),), 0)], "a, x: got 0, expects a number above 0 on a logarithmic axis."),
    ],
)
def test_values_that_cannot_be_plotted_are_an_error(series, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        curves(series, "x", "y", x_log=True)


def test_a_plot_without_rows_is_an_error():
    with pytest.raises(ValueError, match="rows: got none"):
        by_row("distance", [], {}, [])


def test_an_interval_below_zero_is_plotted_on_a_logarithmic_axis():
    series = [Series("kid", (Point(1, 2.0, -1.0, 3.0), Point(2, 1.0, -0.5, 2.0)), 1)]
    assert "NaN" not in curves(series, "steps", "kid", y_log=True).svg()
