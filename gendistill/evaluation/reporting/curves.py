"""Curves of a report, with a colour and a marker for each model: plain data in, a `Plot` out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from gendistill.evaluation.reporting.colours import INK, model_colour, model_marker
from gendistill.evaluation.reporting.plot import Plot, add_legend, letters_in

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Point:
    """A point of a curve; `low` and `high` are the ends of its interval on the y axis."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A model's points in plotting order, and its number from `colour_numbers`."""

    name: str
    points: tuple[Point, ...]
    colour: int
    dashed: bool = False


def curves(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    y_log: bool = False,
    front: Better | None = None,
) -> Plot:
    """A line plot with intervals as bars, and labels of points that overlap neither points nor each other.

    Args:
        front: plot a thin step line along the Pareto front (lower x, and lower or higher y), with filled markers on it and
            hollow markers elsewhere.

    Raises:
        ValueError: a series has no points, or a coordinate is not finite or, on a logarithmic axis, not positive.
    """
    if not series or not all(curve.points for curve in series):
        raise ValueError("series: got one without points, expects at least 1 point in each.")
    for curve in series:
        for point in curve.points:
            for axis, value, log in (("x", point.x, x_log), ("y", point.y, y_log)):
                if not math.isfinite(value) or (log and value <= 0):
                    valid = "a number above 0 on a logarithmic axis" if log else "a finite number"
                    raise ValueError(f"{curve.name}, {axis}: got {value}, expects {valid}.")
    points = [point for curve in series for point in curve.points]

    def plot_onto(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(textwrap.fill(y_label, letters_in(figure)))
        axes.set_xlabel(textwrap.fill(x_label, letters_in(figure)))
        axes.grid(visible=False, axis="x")
        if x_log:
            axes.set_xscale("log")
            _set_ticks(axes.xaxis, [point.x for point in points], LogLocator(2))
        if y_log:
            axes.set_yscale("log")
            _set_ticks(axes.yaxis, [point.y for point in points], LogLocator(subs=(1, 2, 5)))
        best = on_front(points, front) if front else points
        if front:
            axes.plot([p.x for p in best], [p.y for p in best], drawstyle="steps-post", color=INK, linewidth=1, alpha=0.4)
        for curve in series:
            _plot_series(axes, curve, best, y_log=y_log)
        if len(series) > 1:
            add_legend(figure)
        _label_points(figure, axes, series)

    ends = [(curve.name, curve.points[0], curve.points[-1]) for curve in series]
    summaries = [f"{name} from {a.y:.3g} at {a.x:.3g} to {b.y:.3g} at {b.x:.3g}" for name, a, b in ends]
    return Plot(plot_onto, f"{y_label} against {x_label}: {'; '.join(summaries)}.")


def on_front(points: Sequence[Point], better: Better = "lower") -> list[Point]:
    """The Pareto front in x (lower is better) and y, sorted by x; equal points are all included."""
    sign = 1 if better == "lower" else -1

    def dominated(point: Point) -> bool:
        return any(
            other.x <= point.x and sign * other.y <= sign * point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )

    return sorted((point for point in points if not dominated(point)), key=lambda point: point.x)


def _set_ticks(axis: Axis, values: Sequence[float], locator: Locator) -> None:
    """Plain numbers along a logarithmic axis: in linear steps for a narrow range of values, powers of ten for a wide range."""
    ratio = max(values) / min(values)
    axis.set_major_locator(MaxNLocator(5) if ratio < 4 else locator if ratio < 500 else LogLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _plot_series(axes: Axes, series: Series, filled: Sequence[Point], *, y_log: bool) -> None:
    colour, marker = model_colour(series.colour), model_marker(series.colour)
    for point in series.points:
        if point.low is not None and point.high is not None:
            low = max(point.low, point.y / 2) if y_log else point.low  # a logarithmic axis needs positive values
            axes.vlines(point.x, low, point.high, color=colour, linewidth=1.5, alpha=0.5)
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    axes.plot(xs, ys, color=colour, linewidth=1.5, linestyle="--" if series.dashed else "-", alpha=0.7)
    for point in series.points:
        style = "full" if point in filled else "none"
        axes.plot([point.x], [point.y], color=colour, marker=marker, fillstyle=style, markersize=7, linestyle="none")
    axes.plot([], [], color=colour, marker=marker, markersize=7, linestyle="none", label=series.name)


def _label_points(figure: Figure, axes: Axes, series: Sequence[Series]) -> None:
    """Labels next to their points; labels that would overlap a point or another label are omitted."""
    figure.draw_without_rendering()
    positions = axes.transData.transform([(point.x, point.y) for curve in series for point in curve.points])
    occupied = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in positions]
    for curve in series:
        for point in curve.points:
            for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)) if point.label else ():
                text = axes.annotate(
                    point.label,
                    (point.x, point.y),
                    (5 * right, 10 * up),
                    textcoords="offset points",
                    ha="left" if right > 0 else "right",
                    va="center",
                    color=model_colour(curve.colour),
                )
                text.set_in_layout(False)
                box = text.get_window_extent()
                if not any(box.overlaps(other) for other in occupied):
                    occupied.append(box)
                    break
                text.remove()
