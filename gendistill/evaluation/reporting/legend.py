"""Names with their colours and signs above a plot, where they cannot stand beside what they name."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gendistill.evaluation.reporting.plot import Canvas


def add_legend(figure: Figure, canvas: Canvas, entries: Sequence[tuple[str, str, str]]) -> None:
    """Names with their colours and signs above the plot, in as many columns as fit."""
    handles = [
        Line2D([], [], color=colour, marker=sign, linewidth=0, markersize=7, label=shortened(name, canvas, 0.85))
        for name, colour, sign in entries
    ]
    widest = max(len(str(handle.get_label())) for handle in handles) * 0.6 * canvas.font_size + 34
    columns = max(1, min(len(handles), int(canvas.width / widest)))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0.1,
        handlelength=0.9,
        handletextpad=0.6,
        columnspacing=1.6,
    )


def shortened(name: str, canvas: Canvas, share: float) -> str:
    """A name that takes at most a share of the plot's width, its end left out where it is longer."""
    most = max(4, int(share * canvas.width / (0.6 * canvas.font_size)))
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
