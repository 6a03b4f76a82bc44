"""Does it still fit? As a section of a report, whose figures are a table and two plots, and as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn

from gendistill.evaluation.add_ons import AddOnFit
from gendistill.evaluation.fit import Fit, LatentDrift
from gendistill.evaluation.reporting import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Notice,
    PageSection,
    Plot,
    Table,
    TableRow,
    Text,
)
from gendistill.evaluation.reporting.colours import marker
from gendistill.evaluation.reporting.legend import add_legend, shortened
from gendistill.evaluation.reporting.plot import NARROW, WIDE, Canvas

FEW_PICTURES = 16  # below it the figures of layers and add-ons say little
SAME = 1e-9  # the squared distance that rounding alone makes
UNSURE = 0.5  # the teacher's own cosine between two halves of its pictures

# name, what it means
DRIFT = (
    ("mean", "Distance of the channels' means, in standard deviations of the teacher's."),
    ("covariance", "Frobenius distance of the channels' covariances, as a share of the teacher's."),
    ("spread (Bures)", "What the covariances add to the Fréchet distance, as a share of the teacher's variance."),
    ("unrotated", "Squared distance of the latents, centred and of length 1, before any rotation: from 0 to 4."),
    ("Procrustes", "The same after the best rotation of the channels: from 0 to 2."),
)


def fit_section(fit: Fit, student: str = "student", teacher: str = "teacher", colour: int = 1) -> PageSection:
    """Of one student.

    Args:
        student, teacher: their names.
        colour: the student's number from `colour_numbers`.
    """
    drawn, compared = fit.pictures
    blocks: list[Block] = [Cards(_cards(fit, colour))]
    if compared < FEW_PICTURES:
        blocks.append(Notice(f"{compared} pictures are few: the figures of layers and add-ons take {FEW_PICTURES} or more."))
    blocks += [
        Text(_in_words(fit.latents, student, teacher), "Latents"),
        Figure(drift_plot(fit.latents, student, teacher, colour), "0 is no drift."),
        _drift_table(fit.latents, student, colour),
    ]
    if fit.layers:
        blocks += [
            Text(f"Unbiased linear CKA of what the networks' blocks give to {compared} noised latents.", "Layers"),
            Figure(layers_plot(fit, student, colour), "1: the same up to rotation and scale. 0: nothing in common."),
            _layer_table(fit),
        ]
    if fit.unpaired:
        blocks.append(Text(f"Layers of {teacher} that {student} has none for: {', '.join(fit.unpaired)}."))
    if fit.add_ons:
        blocks += [Text(f"What was made for {teacher}, loaded into both models.", "Add-ons"), _add_on_table(fit)]
        blocks += [Text(f"{one.name}: {note}") for one in fit.add_ons for note in one.notes]
        blocks += [Notice(_doubt(one)) for one in fit.add_ons if _doubt(one)]
        missing = [(one.name, ", ".join(one.unfit)) for one in fit.add_ons if one.unfit]
        if missing:
            blocks.append(Details("Modules of a LoRA that did not fit", missing))
    ways = [(name, f"{steps} steps, guidance {scale:g}") for name, (steps, scale) in fit.ways.items()]
    blocks.append(Details("How it was measured", [("pictures", f"{drawn} of each, same noise and prompts"), *ways]))
    return PageSection(f"Does {student} still fit?", blocks, f"{student} in the place of {teacher}.")


def as_json(fit: Fit) -> dict[str, Any]:
    """All figures as plain types, names as in `Fit`; what is infinite or undefined is None, timesteps are texts."""
    found = dataclasses.asdict(fit)
    for layer, told in zip(fit.layers, found["layers"], strict=True):
        told["mean"] = layer.mean
    for one, told in zip(fit.add_ons, found["add_ons"], strict=True):
        if one.effect is not None:
            told["effect"]["ratio"] = one.effect.ratio
    plain = _plain(found)
    assert isinstance(plain, dict)
    return plain


def drift_plot(drift: LatentDrift, student: str = "student", teacher: str = "teacher", colour: int = 1) -> Plot:
    """Bars of how far the latents are from the teacher's; none is no drift."""
    values = dict(zip((name for name, _ in DRIFT), _figures(drift), strict=True))

    def draw(figure: Drawn, canvas: Canvas) -> None:
        axes = figure.subplots()
        for row, value in enumerate(values.values()):
            axes.barh(row, value, height=0.5, color=canvas.palette.model(colour), alpha=0.9, linewidth=0)
            axes.annotate(f"{value:.3g}", (value, row), (6, 0), textcoords="offset points", va="center", size=canvas.small)
        _named_rows(axes, canvas, list(values))
        axes.set_xlim(0, 1.15 * max(*values.values(), 1e-3))
        axes.set_xlabel(f"drift of {student}'s latents", loc="right")

    told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    alt = f"Drift of {student}'s latents from {teacher}'s: {told}."
    return Plot(draw, alt, (WIDE[0], 70 + 34 * len(values)), (NARROW[0], 70 + 34 * len(values)))


def layers_plot(fit: Fit, student: str = "student", colour: int = 1) -> Plot:
    """CKA by layer, from the first block to the last, a sign a timestep.

    Raises:
        ValueError: no layers were compared.
    """
    if not fit.layers:
        raise ValueError("layers: got none, takes at least 1.")
    times = list(fit.layers[0].cka)

    def draw(figure: Drawn, canvas: Canvas) -> None:
        axes, ink = figure.subplots(), canvas.palette.model(colour)
        signs = {time: marker(1 + number) for number, time in enumerate(times)}
        for row, layer in enumerate(fit.layers):
            axes.hlines(row, min(layer.cka.values()), max(layer.cka.values()), color=ink, linewidth=6, alpha=0.16)
            for time, value in layer.cka.items():
                edge = {"markeredgecolor": canvas.palette.background, "markeredgewidth": 1, "zorder": 3}
                axes.plot([value], [row], marker=signs[time], markersize=8, color=ink, **edge)  # type: ignore[arg-type]
        _named_rows(axes, canvas, [layer.teacher for layer in fit.layers])
        axes.set_xlim(min(0, *(value for layer in fit.layers for value in layer.cka.values())) - 0.03, 1.03)
        axes.set_xlabel("CKA", loc="right")
        add_legend(figure, canvas, [(f"t = {time}", ink, sign) for time, sign in signs.items()])

    told = ", ".join(f"{layer.teacher} {layer.mean:.2f}" for layer in fit.layers)
    alt = f"CKA of {student}'s layers with the teacher's, on average over timesteps: {told}."
    size = 100 + 30 * len(fit.layers)
    return Plot(draw, alt, (WIDE[0], size), (NARROW[0], size))


def _named_rows(axes: Axes, canvas: Canvas, names: Sequence[str]) -> None:
    """The first row on top, names at the left, no lines but those that measure."""
    axes.set_yticks(range(len(names)), [shortened(name, canvas, 0.36) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelcolor=canvas.palette.ink)
    axes.grid(axis="x")
    axes.locator_params(axis="x", nbins=4 if canvas.narrow else 7)


def _figures(drift: LatentDrift) -> tuple[float, ...]:
    """In the order of `DRIFT`."""
    moments = drift.moments
    return moments.mean, moments.covariance, moments.bures, drift.unrotated, drift.procrustes


def _cards(fit: Fit, colour: int) -> list[Card]:
    latents = fit.latents
    cards = [
        Card(_number(latents.cosine), "cosine of latents", "same noise and prompt; 1 is equal", colour),
        Card(_decibels(latents.psnr), "PSNR of latents", "the teacher's range is the peak", colour),
    ]
    if fit.mean_cka is not None:
        cards.append(Card(_number(fit.mean_cka), "CKA of layers", f"mean of {len(fit.layers)}; 1 is the same", colour))
    for one in fit.add_ons:
        cosine = one.effect.cosine if one.effect else None
        small = "cosine of its effect with that on the teacher" if one.effect else "does not run in both models"
        cards.append(Card(_number(cosine), f"{one.kind} {one.name}", small, colour))
    return cards


def _in_words(drift: LatentDrift, student: str, teacher: str) -> str:
    if drift.unrotated < SAME:
        return f"{student} draws the same latents as {teacher}."
    gone = max(0.0, 1 - drift.procrustes / drift.unrotated)
    if gone > 0.5:
        return f"{student}'s latent space is turned: the best rotation of its channels takes away {gone:.0%} of the distance."
    return f"The best rotation of {student}'s channels takes away {gone:.0%} of the distance: the space itself is not turned."


def _drift_table(drift: LatentDrift, student: str, colour: int) -> Table:
    columns = [
        Column("model", align="left"),
        *(Column(name, meaning, "lower") for name, meaning in DRIFT),
        Column("cosine", "Between a picture's latents of both models, on average.", "higher"),
        Column("PSNR", "Of the latents, with the range of the teacher's as the peak.", "higher"),
    ]
    cells = [Cell(f"{value:.3g}", value=value) for value in _figures(drift)]
    row = TableRow([Cell(student, colour=colour), *cells, _number(drift.cosine), _decibels(drift.psnr)])
    return Table(columns, [row], "Drift of the latents of the same noise and prompts.")


def _layer_table(fit: Fit) -> Table:
    times = list(fit.layers[0].cka)
    columns = [
        Column("teacher's layer", align="left"),
        Column("student's", align="left"),
        Column("size", "Height and width of the maps."),
        *(Column(f"t = {time}", better="higher") for time in times),
        Column("mean", better="higher"),
    ]
    rows = [
        TableRow(
            [
                layer.teacher,
                layer.student,
                f"{layer.size[0]}×{layer.size[1]}",
                *(Cell(_number(layer.cka[time]), value=layer.cka[time]) for time in times),
                Cell(_number(layer.mean), value=layer.mean),
            ]
        )
        for layer in fit.layers
    ]
    return Table(columns, rows, "CKA by timestep; layers are paired by the size of their maps and their depth.")


def _add_on_table(fit: Fit) -> Table:
    columns = [
        Column("add-on", align="left"),
        Column("cosine", "Of its effect on the student with its effect on the teacher: mean shifts of features.", "higher"),
        Column("ratio", "How far the student's features shift, as a multiple of the teacher's; 1 is as far."),
        Column("repeated", "Cosine of the teacher's own shifts on two halves of the pictures: how sure the cosine is."),
        Column("left out", "Modules of a LoRA that the student has no place for."),
    ]

    def row(one: AddOnFit) -> TableRow:
        effect = one.effect
        numbers = (None, None, None) if effect is None else (effect.cosine, effect.ratio, effect.repeated)
        cells = [Cell(_number(number), value=number) for number in numbers]
        left_out = str(len(one.unfit)) if one.kind == "LoRA" else ""
        return TableRow([f"{one.kind} {one.name}", *cells, left_out])

    return Table(columns, [row(one) for one in fit.add_ons], f"Features of {fit.extractor}.")


def _doubt(one: AddOnFit) -> str:
    repeated = one.effect.repeated if one.effect else None
    if repeated is None or repeated >= UNSURE:
        return ""
    return (
        f"The effect of {one.name} on the teacher itself differs from one half of the pictures to the other (cosine "
        f"{repeated:.2f}): its figures take more pictures."
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _decibels(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.1f} dB"


def _plain(value: object) -> object:
    """Of dicts, lists and numbers, as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
