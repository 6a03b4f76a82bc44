"""A student beside its teacher, a row a group: what got worse, and what is drawn more or less often."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gendistill.evaluation.reporting.colours import marker
from gendistill.evaluation.reporting.curves import Better
from gendistill.evaluation.reporting.legend import add_legend, shortened
from gendistill.evaluation.reporting.plot import NARROW, WIDE, Canvas, Plot

WORST = 20


@dataclass(frozen=True)
class PlottedValue:
    """A figure and, where it is known, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """A class, a group of prompts or a value of an attribute: the teacher's figure and the student's."""

    name: str
    teacher: PlottedValue
    student: PlottedValue

    @property
    def change(self) -> float:
        return self.student.value - self.teacher.value


def worst(groups: Sequence[Group], *, better: Better, most: int = WORST) -> list[Group]:
    """The groups that the student lost most in, the worst first."""
    sign = 1 if better == "lower" else -1
    return sorted(groups, key=lambda group: -sign * group.change)[:most]


def dumbbell(
    groups: Sequence[Group],
    x_label: str,
    *,
    teacher: str = "teacher",
    student: str = "student",
    colour: int = 1,
    better: Better = "lower",
    most: int = WORST,
) -> Plot:
    """The groups that lost most: a line from the teacher's figure to the student's, the change at its right.

    Args:
        teacher, student: their names.
        colour: the student's number from `colour_numbers`.
        better: whether a lower figure is better or a higher one.

    Raises:
        ValueError: there is no group.
    """
    if not groups:
        raise ValueError("groups: got none, takes at least 1.")
    shown = worst(groups, better=better, most=most)
    largest = max(abs(group.change) for group in shown)
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0

    def draw(figure: Figure, canvas: Canvas) -> None:
        axes = figure.subplots()
        own, reference = canvas.palette.model(colour), canvas.palette.model(0)
        for row, group in enumerate(shown):
            axes.hlines(row, group.teacher.value, group.student.value, color=own, linewidth=6, alpha=0.16)
            for estimate, ink in ((group.teacher, reference), (group.student, own)):
                if estimate.low is not None and estimate.high is not None:
                    axes.hlines(row, estimate.low, estimate.high, color=ink, linewidth=1.2, alpha=0.75)
            edge = {"markeredgecolor": canvas.palette.background, "markeredgewidth": 1, "zorder": 3}
            axes.plot([group.teacher.value], [row], marker=marker(0), markersize=6.5, color=reference, **edge)  # type: ignore[arg-type]
            axes.plot([group.student.value], [row], marker=marker(colour), markersize=8, color=own, **edge)  # type: ignore[arg-type]
            _at_right(axes, canvas, row, f"{group.change:+.{digits}f}")
        _rows(axes, canvas, list(enumerate(group.name for group in shown)))
        axes.set_ylim(len(shown) - 0.4, -0.9)
        axes.set_xlabel(x_label, loc="right")
        _at_right(axes, canvas, -0.5 if canvas.narrow else -0.85, "change", quiet=True)
        add_legend(figure, canvas, [(teacher, reference, marker(0)), (student, own, marker(colour))])

    first = shown[0]
    told = f"{first.name} from {first.teacher.value:.3g} to {first.student.value:.3g}"
    alt = f"{x_label} of {teacher} and {student} in {len(shown)} groups; the one that lost most is {told}."
    return Plot(draw, alt, (WIDE[0], 90 + 25 * len(shown)), (NARROW[0], 96 + 38 * len(shown)))


def shares(
    attributes: Mapping[str, Sequence[Group]],
    x_label: str = "share of pictures",
    *,
    teacher: str = "teacher",
    student: str = "student",
    colour: int = 1,
) -> Plot:
    """How often each value of each attribute is drawn, in [0, 1]: two bars a value, the intervals across their ends
    and the change in percentage points at the right.

    Raises:
        ValueError: there is no attribute or one has no values.
    """
    if not attributes or not all(attributes.values()):
        raise ValueError("attributes: got one without values, takes at least 1 value in each.")
    headings, values, position = [], [], 0.0
    for attribute, groups in attributes.items():
        headings.append((position, attribute))
        values += [(position + 1 + number, group) for number, group in enumerate(groups)]
        position += len(groups) + 1.5
    bottom = position - 0.9

    def draw(figure: Figure, canvas: Canvas) -> None:
        axes = figure.subplots()
        own, reference = canvas.palette.model(colour), canvas.palette.model(0)
        thick = 0.22 if canvas.narrow else 0.34
        middle = 0.1 if canvas.narrow else 0.0  # below it where names need room above the bars
        for row, group in values:
            for estimate, ink, at in (
                (group.teacher, reference, row + middle - thick / 2),
                (group.student, own, row + middle + thick / 2),
            ):
                opacity = 0.32 if ink == reference else 0.9
                axes.barh(at, estimate.value, height=thick, color=ink, alpha=opacity, linewidth=0)
                if estimate.low is not None and estimate.high is not None:
                    axes.hlines(at, estimate.low, estimate.high, color=canvas.palette.ink, linewidth=1.2, alpha=0.75)
            _at_right(axes, canvas, row + middle, f"{100 * group.change:+.1f}")
        _rows(axes, canvas, [(row, group.name) for row, group in values])
        for at, heading in headings:
            x = 0 if canvas.narrow else -0.01
            side = "left" if canvas.narrow else "right"
            text = shortened(heading, canvas, 0.3 if not canvas.narrow else 0.9)
            axes.text(x, at, text, transform=axes.get_yaxis_transform(), va="center", ha=side, weight="bold")
        axes.set(xlim=(0, None), ylim=(bottom, -0.6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(x_label, loc="right")
        _at_right(axes, canvas, 0, "points", quiet=True)
        add_legend(figure, canvas, [(teacher, canvas.palette.muted, "s"), (student, own, "s")])

    changed = max((group for _, group in values), key=lambda group: abs(group.change))
    told = f"{changed.name} from {changed.teacher.value:.0%} to {changed.student.value:.0%}"
    alt = f"{x_label} of {teacher} and {student} by {', '.join(attributes)}; what changed most is {told}."
    return Plot(draw, alt, (WIDE[0], round(80 + 29 * (bottom + 0.6))), (NARROW[0], round(90 + 40 * (bottom + 0.6))))


def _at_right(axes: Axes, canvas: Canvas, row: float, change: str, *, quiet: bool = False) -> None:
    """A change right of its row, one below the other by their last digits."""
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right", "va": "center"}
    text = change.replace("-", "\N{MINUS SIGN}")
    ink = canvas.palette.muted if quiet else canvas.palette.ink
    axes.annotate(text, (1, row), (46, 0), size=canvas.small, color=ink, annotation_clip=False, **place)  # type: ignore[arg-type]


def _rows(axes: Axes, canvas: Canvas, names: Sequence[tuple[float, str]]) -> None:
    """Names left of the rows or, where there is no room, above them; no lines but those that measure."""
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=4 if canvas.narrow else 7)
    if canvas.narrow:
        axes.set_yticks([])
        for row, name in names:
            text = shortened(name, canvas, 0.8)
            axes.text(0, row - 0.36, text, transform=axes.get_yaxis_transform(), va="center", size=canvas.small)
    else:
        axes.set_yticks([row for row, _ in names], [shortened(name, canvas, 0.3) for _, name in names])
        axes.tick_params(axis="y", labelcolor=canvas.palette.ink)
