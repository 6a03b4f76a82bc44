"""Names beside what they name: each goes to the first free place around its point, so that few plots need a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

Pair = tuple[float, float]

RIGHT: tuple[Pair, ...] = ((1, 0), (1, 0.5), (1, -0.5), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
AROUND: tuple[Pair, ...] = ((0, 1), (1, 0.6), (1, -0.6), (0, -1), (-1, 0.6), (-1, -0.6), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Label:
    """A text and the points that it may stand beside, in data coordinates, best first."""

    text: str
    anchors: Sequence[Pair]
    colour: str
    size: float
    bold: bool = False
    directions: Sequence[Pair] = AROUND
    distances: Sequence[float] = (7.0,)  # from the point to the edge of the text, points


@dataclass
class Obstacles:
    """What labels keep off, in display coordinates of one point a unit: boxes of text, and points of marks and lines."""

    points: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    marks: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))  # those that a label could be taken to name
    boxes: list[Bbox] = field(default_factory=list)

    def add_path(self, axes: Axes, points: Iterable[Pair], *, radius: float = 0) -> None:
        """A line through points in data coordinates, and round marks at them."""
        corners = axes.transData.transform(np.asarray(list(points), dtype=float).reshape(-1, 2))
        parts = [corners]
        for start, end in pairwise(corners):
            count = max(2, int(np.hypot(*(end - start)) / 3))
            parts.append(start + (end - start) * np.linspace(0, 1, count)[:, None])
        if radius:
            ring = np.linspace(0, 2 * np.pi, 8, endpoint=False)
            self.marks = np.concatenate([self.marks, corners])
            parts += [corners + radius * np.array([np.cos(angle), np.sin(angle)]) for angle in ring]
        self.points = np.concatenate([self.points, *parts])

    def hit(self, box: Bbox) -> bool:
        """Whether a text in the box would touch another."""
        return any(box.overlaps(other) for other in self.boxes)

    def covered(self, box: Bbox) -> int:
        """How many points of marks and lines a text in the box would cover."""
        inside = (self.points >= [box.x0, box.y0]) & (self.points <= [box.x1, box.y1])
        return int(inside.all(axis=1).sum())

    def nearest(self, box: Bbox, mark: np.ndarray) -> bool:
        """Whether no other mark is nearer to the box."""
        away = np.hypot(*np.maximum([[box.x0], [box.y0]] - self.marks.T, self.marks.T - [[box.x1], [box.y1]]).clip(min=0))
        own = np.hypot(*(self.marks - mark).T) < 1
        return bool(own.any()) and (own.all() or away[own].min() <= away[~own].min() + 1)


def place(axes: Axes, labels: Sequence[Label], obstacles: Obstacles, bounds: Bbox) -> list[Label]:
    """Write the labels on the axes, each where it covers nothing; gives those that found no place.

    The layout of the figure must be final. What is written becomes an obstacle for those that come after.
    """
    canvas: Any = axes.figure.canvas
    renderer = canvas.get_renderer()
    left_out = []
    for label in labels:
        text = axes.annotate(
            label.text,
            (0, 0),
            xytext=(0, 0),
            textcoords="offset points",
            color=label.colour,
            fontsize=label.size,
            fontweight="bold" if label.bold else "normal",
            ha="center",
            va="center",
            annotation_clip=False,
        )
        text.set_in_layout(False)
        box = text.get_window_extent(renderer)
        if not _settle(axes, text, label, box.width, box.height, obstacles, bounds):
            text.remove()
            left_out.append(label)
    return left_out


def _settle(
    axes: Axes, text: Annotation, label: Label, width: float, height: float, obstacles: Obstacles, bounds: Bbox
) -> bool:
    """Move the text to the first place where it covers nothing; False where there is none."""
    for distance in label.distances:
        for anchor in label.anchors:
            x, y = axes.transData.transform(anchor)
            for right, up in label.directions:
                dx, dy = right * (width / 2 + distance), up * (height / 2 + distance)
                box = Bbox.from_bounds(x + dx - width / 2, y + dy - height / 2, width, height).padded(1)
                inside = box.x0 >= bounds.x0 and box.x1 <= bounds.x1 and box.y0 >= bounds.y0 and box.y1 <= bounds.y1
                free = inside and not obstacles.hit(box) and not obstacles.covered(box)
                if free and obstacles.nearest(box, np.array([x, y])):
                    text.xy = anchor
                    text.set_position((dx, dy))
                    obstacles.boxes.append(box)
                    return True
    return False
