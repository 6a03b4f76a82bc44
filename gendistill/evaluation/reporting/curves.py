"""Curves of a report, a colour and a sign a model, labelled where they run: plain data in, a `Plot` out."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from gendistill.evaluation.reporting.colours import marker
from gendistill.evaluation.reporting.labels import RIGHT, Label, Obstacles, place
from gendistill.evaluation.reporting.legend import add_legend
from gendistill.evaluation.reporting.plot import Canvas, Plot
from gendistill.evaluation.reporting.ticks import log_ticks, set_ticks, spaced

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Point:
    """A figure at a place; `low` and `high` are the ends of its interval on the y axis."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A model's points, in the order in which they are joined, and its number from `colour_numbers`."""

    name: str
    points: tuple[Point, ...]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Look:
    """How curves are drawn."""

    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[float, ...] = ()  # where they are not the round numbers
    bands: bool = False  # intervals as bands along the lines, else as bars at the points
    front: Better | None = None  # draw the Pareto front of least x and of y as it is better
    labels: bool = True  # of points
    from_zero: bool = False  # let the y axis begin there where the figures are not far from it


def quality_against_steps(series: Sequence[Series], y_label: str, *, y_log: bool = False, x_label: str = "steps") -> Plot:
    """A score against the number of steps (or of network calls), doubling by doubling, intervals as bands.

    Raises:
        ValueError: there is no point, or a coordinate is no number or, on a logarithmic axis, not above 0.
    """
    counts = tuple(sorted({point.x for one in series for point in one.points}))
    return _curves(series, Look(x_label, y_label, True, y_log, counts, bands=True, labels=False, from_zero=True))


def pareto(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = True,
    y_log: bool = False,
    better: Better = "lower",
) -> Plot:
    """Quality against cost. A thin step line runs along the points that no other beats in both, which are filled.

    Args:
        better: whether a lower y is better or a higher one; a lower x always is.

    Raises:
        ValueError: as `quality_against_steps`.
    """
    return _curves(series, Look(x_label, y_label, x_log=x_log, y_log=y_log, front=better))


def guidance_curve(series: Sequence[Series], x_label: str, y_label: str, *, y_log: bool = False) -> Plot:
    """One score against another, a point a guidance scale, which its label names.

    Raises:
        ValueError: as `quality_against_steps`.
    """
    return _curves(series, Look(x_label, y_label, y_log=y_log))


def on_front(points: Sequence[Point], better: Better = "lower") -> list[Point]:
    """The points that no other beats in x (lower) and y together, by x; of equal ones all."""
    sign = 1 if better == "lower" else -1

    def beaten(point: Point) -> bool:
        return any(
            other.x <= point.x and sign * other.y <= sign * point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.x)


def _curves(series: Sequence[Series], look: Look) -> Plot:
    _check(series, look)
    if look.y_log:
        series = _above_zero(series)

    def draw(figure: Figure, canvas: Canvas) -> None:
        if not _draw(figure, canvas, series, look, legend=canvas.narrow and len(series) > 1):
            figure.clear()
            figure.set_layout_engine("constrained")
            _draw(figure, canvas, series, look, legend=True)

    ends = [(one.name, one.points[0], one.points[-1]) for one in series]
    told = [f"{name} from {a.y:.3g} at {a.x:.3g} to {b.y:.3g} at {b.x:.3g}" for name, a, b in ends]
    return Plot(draw, f"{look.y_label} against {look.x_label}: {'; '.join(told)}.")


def _check(series: Sequence[Series], look: Look) -> None:
    if not series or not all(one.points for one in series):
        raise ValueError("series: got one without points, takes at least 1 point in each.")
    for one in series:
        for point in one.points:
            for axis, value, log in (("x", point.x, look.x_log), ("y", point.y, look.y_log)):
                if not math.isfinite(value) or (log and value <= 0):
                    takes = "a number above 0 on a logarithmic axis" if log else "a finite number"
                    raise ValueError(f"{one.name}, {axis}: got {value}, takes {takes}.")


def _above_zero(series: Sequence[Series]) -> list[Series]:
    """The same with intervals that a logarithmic axis can show: those that reach 0 go to the lower edge."""
    floor = min(point.y for one in series for point in one.points) / 2

    def bounded(point: Point) -> Point:
        return point if point.low is None else dataclasses.replace(point, low=max(point.low, floor))

    return [dataclasses.replace(one, points=tuple(bounded(point) for point in one.points)) for one in series]


def _draw(figure: Figure, canvas: Canvas, series: Sequence[Series], look: Look, *, legend: bool) -> bool:
    """Draw all; False where names are to stand beside their curves and one found no place."""
    axes = figure.subplots()
    front = on_front([point for one in series for point in one.points], look.front) if look.front else []
    for one in series:
        _draw_series(axes, canvas, one, look, front)
    title = _dress(axes, canvas, series, look)
    if front:
        _draw_front(axes, canvas, front)
    if legend:
        add_legend(figure, canvas, [(one.name, canvas.palette.model(one.colour), marker(one.colour)) for one in series])
    else:
        _leave_room(figure, canvas, series)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    title.set_x((3 - inside.x0) / inside.width)  # at the edge of the page's text
    return _label(figure, axes, canvas, series, look, names=not legend and len(series) > 1)


def _draw_series(axes: Axes, canvas: Canvas, one: Series, look: Look, front: Sequence[Point]) -> None:
    colour = canvas.palette.model(one.colour)
    xs, ys = [point.x for point in one.points], [point.y for point in one.points]
    bounded = [point for point in one.points if point.low is not None and point.high is not None]
    if look.bands and len(bounded) > 1:
        low, high = zip(*[(point.low, point.high) for point in bounded], strict=True)
        axes.fill_between([point.x for point in bounded], low, high, color=colour, alpha=0.13, linewidth=0)
    else:
        for point in bounded:
            axes.vlines(point.x, point.low, point.high, color=colour, linewidth=1.5, alpha=0.5)  # type: ignore[arg-type]
    quiet = look.front is not None
    style = (0, (4, 3)) if one.dashed else "-"
    axes.plot(xs, ys, color=colour, linewidth=1.2 if quiet else 2, alpha=0.5 if quiet else 1, linestyle=style, zorder=2.5)
    size = 7.5 if marker(one.colour) != "D" else 6.5
    for point in one.points:
        filled = look.front is None or point in front
        axes.plot(
            [point.x],
            [point.y],
            marker=marker(one.colour),
            markersize=size,
            color=colour if filled else canvas.palette.background,
            markeredgecolor=canvas.palette.background if filled else colour,
            markeredgewidth=1 if filled else 1.4,
            zorder=3,
        )


def _dress(axes: Axes, canvas: Canvas, series: Sequence[Series], look: Look) -> Text:
    """Axes, ticks and what they measure; gives the name of the y axis, which stands above it."""
    letters = int(0.85 * canvas.width / (0.55 * canvas.font_size))
    title = axes.set_title(textwrap.fill(look.y_label, letters), loc="left", color=canvas.palette.ink, pad=12)
    axes.set_xlabel(textwrap.fill(look.x_label, letters), loc="right")
    axes.grid(axis="y")
    axes.margins(x=0.07 if canvas.narrow else 0.05, y=0.1)
    xs = [point.x for one in series for point in one.points]
    ys = [value for one in series for p in one.points for value in (p.y, p.low, p.high) if value is not None]
    if look.x_log:
        axes.set_xscale("log")
        axes.minorticks_off()
        set_ticks(
            axes.xaxis,
            spaced(look.x_ticks, 9 if canvas.narrow else 18) or log_ticks(min(xs), max(xs), 5 if canvas.narrow else 8),
        )
    elif look.x_ticks:
        set_ticks(axes.xaxis, look.x_ticks)
    if look.y_log:
        axes.set_yscale("log")
        set_ticks(axes.yaxis, log_ticks(min(y for y in ys if y > 0), max(ys), 6))
    elif look.from_zero and 0 <= min(ys) < 0.4 * max(ys):
        axes.set_ylim(bottom=0)
    if not look.y_log:
        axes.locator_params(axis="y", nbins=5)
    return title


def _draw_front(axes: Axes, canvas: Canvas, front: Sequence[Point]) -> None:
    """From the edge where nothing is so cheap, along the front, to the edge where nothing is better."""
    x_limits, y_limits = axes.get_xlim(), axes.get_ylim()
    xs, ys = zip(*_steps(axes, front), strict=True)
    axes.fill_between(xs, ys, ys[0], color=canvas.palette.muted, alpha=0.08, linewidth=0, zorder=0.5)
    axes.plot(xs, ys, color=canvas.palette.muted, linewidth=1, zorder=1.5, alpha=0.5)
    axes.set(xlim=x_limits, ylim=y_limits)


def _steps(axes: Axes, front: Sequence[Point]) -> list[tuple[float, float]]:
    """The corners of the front's line, first those on the worse edge of the axes."""
    worst = axes.get_ylim()[1] if front[0].y >= front[-1].y else axes.get_ylim()[0]
    corners = [(front[0].x, worst)]
    for point, following in zip(front, [*(point.x for point in front[1:]), axes.get_xlim()[1]], strict=True):
        corners += [(point.x, point.y), (following, point.y)]
    return corners


def _leave_room(figure: Figure, canvas: Canvas, series: Sequence[Series]) -> None:
    """Right of the axes, for the names of the curves that end there."""
    last = max(point.x for one in series for point in one.points)
    names = [one.name for one in series if one.points[-1].x == last]
    room = max((len(name) for name in names), default=0) * 0.58 * canvas.font_size
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1 - min(room, 0.3 * canvas.width) / canvas.width, 1))


def _label(figure: Figure, axes: Axes, canvas: Canvas, series: Sequence[Series], look: Look, *, names: bool) -> bool:
    obstacles = Obstacles()
    for one in series:
        obstacles.add_path(axes, [(point.x, point.y) for point in one.points], radius=5)
        for point in one.points:
            if not look.bands and point.low is not None and point.high is not None:
                obstacles.add_path(axes, [(point.x, point.low), (point.x, point.high)])
    if look.front:
        steps = on_front([point for one in series for point in one.points], look.front)
        obstacles.add_path(axes, _steps(axes, steps))
    inside = axes.get_window_extent()
    bounds = Bbox.from_extents(inside.x0, inside.y0 + 2, canvas.width - 2, inside.y1 + 4)

    def label(one: Series, text: str, anchors: Sequence[tuple[float, float]], **more: Any) -> Label:
        return Label(text, anchors, canvas.palette.model(one.colour), canvas.font_size, **more)

    if names:
        named = []
        ends = sorted(one.points[-1].y for one in series)
        for one in sorted(series, key=lambda one: one.points[-1].y):
            anchors = [(point.x, point.y) for point in reversed(one.points)]
            low = one.points[-1].y < ends[len(ends) // 2] or (one.points[-1].y == ends[len(ends) // 2] and len(ends) > 2)
            directions = [(right, -up) for right, up in RIGHT] if low else RIGHT
            named.append(label(one, one.name, anchors, bold=True, directions=directions, distances=(7, 12, 18)))
        if place(axes, named, obstacles, bounds):
            return False
    if look.labels:
        quiet = [
            dataclasses.replace(label(one, p.label, [(p.x, p.y)]), size=12) for one in series for p in one.points if p.label
        ]
        place(axes, quiet, obstacles, bounds)
    return True
