"""The quality that a run with a budget is expected to reach, from measurements of runs like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gendistill.assets import ASSETS, asset_path


@dataclass(frozen=True)
class Measured:
    """A measured run of an embedded teacher.

    Attributes:
        length: samples that it was trained on: optimizer steps times batch; of latent alignment, its trajectories.
        closed: fraction of the gap that the student closes, by network calls.
        source: the page with the figures.
    """

    teacher: str
    method: str
    length: int
    closed: dict[int, float]
    source: str


MEASURED: tuple[Measured, ...] = (
    Measured("tiny-sd", "consistency", 64_000, {4: 0.85, 2: 0.96, 1: 0.93}, "how-figures-are-measured.md"),
    Measured("tiny-sd", "consistency", 384_000, {4: 0.79, 2: 0.97, 1: 0.97}, "how-figures-are-measured.md"),
    Measured("tiny-sd", "latent_alignment", 1_024, {4: 0.77, 2: 0.88, 1: 0.85}, "methods/latent-alignment.md"),
    Measured("tiny-sd", "latent_alignment", 8_192, {4: 0.949, 2: 0.959, 1: 0.909}, "methods/latent-alignment.md"),
    Measured("tiny-sd", "latent_alignment", 16_384, {4: 0.953, 2: 0.976, 1: 0.930}, "methods/latent-alignment.md"),
    Measured("tiny-sd3", "consistency", 16_640, {4: 0.83, 2: 0.94, 1: 0.96}, "flow-matching.md"),
    Measured("tiny-sd3", "latent_alignment", 12_288, {4: 0.83, 2: 0.97}, "flow-matching.md"),
)


def forecast(teacher: str, method: str, length: int, steps: list[int]) -> str:
    """One sentence: the gap that the nearest measured run closed, or that there is none.

    Args:
        length: that of the planned run, as in `Measured`.
    """
    name = embedded_name(teacher)
    runs = [run for run in MEASURED if (run.teacher, run.method) == (name, method)]
    if not runs:
        return "no forecast: this teacher was not measured"
    nearest = min(runs, key=lambda run: max(run.length, length) / max(min(run.length, length), 1))
    figures = ", ".join(f"{closed:.2f} at {calls}" for calls, closed in nearest.closed.items() if calls in steps)
    if not figures:
        return f"no forecast: {name} was not measured at these step counts"
    what = "trajectories" if method == "latent_alignment" else "training samples"
    shorter = ", less in so short a run" if length < nearest.length / 2 else ""
    measured = f"the gap closed by the nearest measured run, of {nearest.length:,} {what}"
    return f"{figures} calls: {measured}; this run has {length:,}{shorter}"


def embedded_name(teacher: str) -> str | None:
    """The name of a teacher that comes with the package; None for any other."""
    folder = Path(asset_path(teacher)).expanduser().resolve()
    return folder.name if folder.parent == ASSETS.resolve() else None
