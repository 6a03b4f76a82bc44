"""Curves of a report, a colour and a sign a model: plain data in, a `Plot` out."""

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


def curves(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    y_log: bool = False,
    front: Better | None = None,
) -> Plot:
    """One figure against another, intervals as bars at the points, labels of points where they cover nothing.

    Args:
        front: sample a thin step line along the points that no other beats in both, which are filled and the others hollow:
            those of least x, and of y as it is better.

    Raises:
        ValueError: there is no point, or a coordinate is no number or, on a logarithmic axis, not above 0.
    """
    if not series or not all(one.points for one in series):
        raise ValueError("series: got one without points, expects at least 1 point in each.")
    for one in series:
        for point in one.points:
            for axis, value, log in (("x", point.x, x_log), ("y", point.y, y_log)):
                if not math.isfinite(value) or (log and value <= 0):
                    takes = "a number above 0 on a logarithmic axis" if log else "a finite number"
                    raise ValueError(f"{one.name}, {axis}: got {value}, expects {takes}.")
    points = [point for one in series for point in one.points]

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
        for one in series:
            _draw_series(axes, one, best, y_log=y_log)
        if len(series) > 1:
            add_legend(figure)
        _label_points(figure, axes, series)

    ends = [(one.name, one.points[0], one.points[-1]) for one in series]
    told = [f"{name} from {a.y:.3g} at {a.x:.3g} to {b.y:.3g} at {b.x:.3g}" for name, a, b in ends]
    return Plot(plot_onto, f"{y_label} against {x_label}: {'; '.join(told)}.")


def on_front(points: Sequence[Point], better: Better = "lower") -> list[Point]:
    """The points that no other beats in x (lower) and y together, by x; of equal ones all."""
    sign = 1 if better == "lower" else -1

    def beaten(point: Point) -> bool:
        return any(
            other.x <= point.x and sign * other.y <= sign * point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: point.x)


def _set_ticks(axis: Axis, values: Sequence[float], locator: Locator) -> None:
    """Plain numbers along a logarithmic axis, in even steps where the values are near each other, tenfold where far."""
    reach = max(values) / min(values)
    axis.set_major_locator(MaxNLocator(5) if reach < 4 else locator if reach < 500 else LogLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _draw_series(axes: Axes, one: Series, filled: Sequence[Point], *, y_log: bool) -> None:
    colour, marker = model_colour(one.colour), model_marker(one.colour)
    for point in one.points:
        if point.low is not None and point.high is not None:
            low = max(point.low, point.y / 2) if y_log else point.low  # a logarithmic axis has no 0
            axes.vlines(point.x, low, point.high, color=colour, linewidth=1.5, alpha=0.5)
    xs, ys = [point.x for point in one.points], [point.y for point in one.points]
    axes.plot(xs, ys, color=colour, linewidth=1.5, linestyle="--" if one.dashed else "-", alpha=0.7)
    for point in one.points:
        style = "full" if point in filled else "none"
        axes.plot([point.x], [point.y], color=colour, marker=marker, fillstyle=style, markersize=7, linestyle="none")
    axes.plot([], [], color=colour, marker=marker, markersize=7, linestyle="none", label=one.name)


def _label_points(figure: Figure, axes: Axes, series: Sequence[Series]) -> None:
    """Labels beside their points, left out where they would cover a point or another label."""
    figure.draw_without_rendering()
    marks = axes.transData.transform([(point.x, point.y) for one in series for point in one.points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for one in series:
        for point in one.points:
            for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)) if point.label else ():
                text = axes.annotate(
                    point.label,
                    (point.x, point.y),
                    (5 * right, 10 * up),
                    textcoords="offset points",
                    ha="left" if right > 0 else "right",
                    va="center",
                    color=model_colour(one.colour),
                )
                text.set_in_layout(False)
                box = text.get_window_extent()
                if not any(box.overlaps(other) for other in taken):
                    taken.append(box)
                    break
                text.remove()
