"""A scatter plot of a report: a point for each run, with a Pareto front or the best value so far."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from gendistill.evaluation.reporting.colours import INK, model_colour
from gendistill.evaluation.reporting.plot import Plot, letters_in


@dataclass(frozen=True)
class Dot:
    """A point: its place, a number or a name on the x axis, and whether it is filled."""

    x: Any
    y: float
    filled: bool = True


def scatter(
    dots: Sequence[Dot],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
    steps: Sequence[tuple[float, float]] = (),
    height: int = 300,
) -> Plot:
    """Points, and a thin step line through `steps`, such as a front. Names on the x axis are in the order of the points.

    Raises:
        ValueError: there are no points.
    """
    if not dots:
        raise ValueError("dots: got none, expects at least 1.")

    def plot_onto(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_title(textwrap.fill(y_label, letters_in(figure)))
        axes.set_xlabel(textwrap.fill(x_label, letters_in(figure)))
        axes.grid(visible=False, axis="x")
        if x_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        elif all(isinstance(dot.x, int) for dot in dots):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if steps:
            axes.plot([x for x, _ in steps], [y for _, y in steps], drawstyle="steps-post", color=INK, linewidth=1, alpha=0.4)
        for filled in (False, True):
            chosen = [dot for dot in dots if dot.filled == filled]
            style = "full" if filled else "none"
            xs, ys = [dot.x for dot in chosen], [dot.y for dot in chosen]
            axes.plot(xs, ys, color=model_colour(1), marker="o", fillstyle=style, markersize=6, linestyle="none")

    low, high = min(dot.y for dot in dots), max(dot.y for dot in dots)
    return Plot(plot_onto, f"{y_label} against {x_label}: {len(dots)} points from {low:.3g} to {high:.3g}.", height)
