"""Dot plots of models with one row per group, such as a concept, an attribute's value or a layer."""

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
    """A value and its optional interval."""

    value: float
    low: float | None = None
    high: float | None = None


def by_row(x_label: str, rows: Sequence[str], values: Mapping[str, Sequence[PlottedValue]], colours: Sequence[int]) -> Plot:
    """One row per group, from top to bottom, with one marker per model; for two models, with the change in the right margin.

    Args:
        rows: names of the groups.
        values: values by model, one per row.
        colours: the models' numbers from `colour_numbers`.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows: got none, expects at least 1.")
    y = range(len(rows))
    by_group = list(zip(*([plotted.value for plotted in column] for column in values.values()), strict=True))

    def plot_onto(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.hlines(y, [min(row) for row in by_group], [max(row) for row in by_group], color=INK, linewidth=6, alpha=0.12)
        for (name, column), number in zip(values.items(), colours, strict=True):
            colour = model_colour(number)
            for row, plotted in zip(y, column, strict=True):
                if plotted.low is not None and plotted.high is not None:
                    axes.hlines(row, plotted.low, plotted.high, color=colour, linewidth=1.5, alpha=0.75)
            x = [plotted.value for plotted in column]
            axes.plot(x, y, color=colour, marker=model_marker(number), markersize=7, linestyle="none", label=name)
        letters = letters_in(figure, 0.36)
        axes.set_yticks(y, [textwrap.fill(name, letters, max_lines=2, placeholder="…") for name in rows])
        axes.set_ylim(len(rows) - 0.4, -1)
        axes.xaxis.set_major_locator(MaxNLocator(letters_in(figure) // 10))
        axes.set_xlabel(textwrap.fill(x_label, letters_in(figure, 0.7)))
        if len(values) == 2:
            changes = axes.secondary_yaxis("right")
            changes.set_yticks([-0.8, *y], ["change", *(f"{last - first:+.3g}" for first, last in by_group)])
            changes.spines["right"].set_visible(False)
        if len(values) > 1:
            add_legend(figure)

    summaries = [
        f"{name}: " + ", ".join(f"{model} {value:.3g}" for model, value in zip(values, row, strict=True))
        for name, row in zip(rows, by_group, strict=True)
    ]
    return Plot(plot_onto, f"{x_label}; {'; '.join(summaries)}.", 90 + 32 * len(rows))
