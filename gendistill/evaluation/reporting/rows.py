"""Models beside each other, a row a group: what got worse, what is sampled more or less often, what is no longer alike."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gendistill.evaluation.reporting.colours import INK, model_colour, model_marker
from gendistill.evaluation.reporting.plot import Plot, add_legend, letters_in


@dataclass(frozen=True)
class PlottedValue:
    """A figure and, where it is known, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def by_row(x_label: str, rows: Sequence[str], values: Mapping[str, Sequence[PlottedValue]], colours: Sequence[int]) -> Plot:
    """A row a group from above, a sign a model; where two models are compared, the change from the first at the right.

    Args:
        rows: names of the groups.
        values: by model, one a row.
        colours: the models' numbers from `colour_numbers`.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("rows: got none, expects at least 1.")
    at, each = range(len(rows)), list(zip(*([one.value for one in found] for found in values.values()), strict=True))

    def plot_onto(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.hlines(at, [min(row) for row in each], [max(row) for row in each], color=INK, linewidth=6, alpha=0.12)
        for (name, found), number in zip(values.items(), colours, strict=True):
            ink = model_colour(number)
            for row, one in zip(at, found, strict=True):
                if one.low is not None and one.high is not None:
                    axes.hlines(row, one.low, one.high, color=ink, linewidth=1.5, alpha=0.75)
            figures = [one.value for one in found]
            axes.plot(figures, at, color=ink, marker=model_marker(number), markersize=7, linestyle="none", label=name)
        letters = letters_in(figure, 0.36)
        axes.set_yticks(at, [textwrap.fill(name, letters, max_lines=2, placeholder="…") for name in rows])
        axes.set_ylim(len(rows) - 0.4, -1)
        axes.xaxis.set_major_locator(MaxNLocator(letters_in(figure) // 10))
        axes.set_xlabel(textwrap.fill(x_label, letters_in(figure, 0.7)))
        if len(values) == 2:
            changes = axes.secondary_yaxis("right")
            changes.set_yticks([-0.8, *at], ["change", *(f"{last - first:+.3g}" for first, last in each)])
            changes.spines["right"].set_visible(False)
        if len(values) > 1:
            add_legend(figure)

    told = [
        f"{name}: " + ", ".join(f"{model} {value:.3g}" for model, value in zip(values, row, strict=True))
        for name, row in zip(rows, each, strict=True)
    ]
    return Plot(plot_onto, f"{x_label}; {'; '.join(told)}.", 90 + 32 * len(rows))
