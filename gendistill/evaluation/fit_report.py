"""Does it still fit? As a section of a report, whose figures are a table and two plots, and as plain data."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import TypeAdapter

from gendistill.evaluation.add_ons import AddOnFit
from gendistill.evaluation.fit import Fit, LatentDrift
from gendistill.evaluation.reporting.page import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Notice,
    PageSection,
    Table,
    TableRow,
    Text,
)
from gendistill.evaluation.reporting.plot import Plot
from gendistill.evaluation.reporting.rows import PlottedValue, by_row

FEW_IMAGES = 16  # below it the figures of layers and add-ons say little
SAME = 1e-9  # the squared distance that rounding alone makes
UNSURE = 0.5  # the teacher's own cosine between two halves of its images

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
    generated, compared = fit.images
    blocks: list[Block] = [Cards(_cards(fit, colour))]
    if compared < FEW_IMAGES:
        blocks.append(Notice(f"{compared} images are few: the figures of layers and add-ons take {FEW_IMAGES} or more."))
    blocks += [
        Text(_in_words(fit.latents, student, teacher), "Latents"),
        Figure(drift_plot(fit.latents, student, colour), "0 is no drift."),
        _drift_table(fit.latents, student, colour),
    ]
    if fit.layers:
        blocks += [
            Text(f"Unbiased linear CKA of what the networks' blocks give to {compared} noised latents.", "Layers"),
            Figure(layers_plot(fit), "1: the same up to rotation and scale. 0: nothing in common."),
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
    trajectories = [(name, f"{steps} steps, guidance {scale:g}") for name, (steps, scale) in fit.trajectories.items()]
    blocks.append(Details("How it was measured", [("images", f"{generated} of each, same noise and prompts"), *trajectories]))
    return PageSection(f"Does {student} still fit?", blocks, f"{student} in the place of {teacher}.")


def as_json(fit: Fit) -> dict[str, Any]:
    """All figures as plain types, names as in `Fit`; what is infinite or undefined is None, timesteps are texts."""
    found: dict[str, Any] = json.loads(TypeAdapter(Fit).dump_json(fit))
    for layer, told in zip(fit.layers, found["layers"], strict=True):
        told["mean"] = layer.mean
    for one, told in zip(fit.add_ons, found["add_ons"], strict=True):
        if one.effect is not None:
            told["effect"]["ratio"] = one.effect.ratio
    return found


def drift_plot(drift: LatentDrift, student: str = "student", colour: int = 1) -> Plot:
    """How far the latents are from the teacher's; 0 is no drift."""
    values = {student: [PlottedValue(value) for value in _figures(drift)]}
    return by_row(f"drift of {student}'s latents", [name for name, _ in DRIFT], values, [colour])


def layers_plot(fit: Fit) -> Plot:
    """CKA by layer, from the first block to the last, a sign a timestep.

    Raises:
        ValueError: no layers were compared.
    """
    times = list(fit.layers[0].cka) if fit.layers else []
    values = {f"t = {time}": [PlottedValue(layer.cka[time]) for layer in fit.layers] for time in times}
    return by_row("CKA", [layer.teacher for layer in fit.layers], values, range(1, len(times) + 1))


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
        return f"{student} samples the same latents as {teacher}."
    gone = max(0.0, 1 - drift.procrustes / drift.unrotated)
    if gone > 0.5:
        return f"{student}'s latent space is turned: the best rotation of its channels takes away {gone:.0%} of the distance."
    return f"The best rotation of {student}'s channels takes away {gone:.0%} of the distance: the space itself is not turned."


def _drift_table(drift: LatentDrift, student: str, colour: int) -> Table:
    columns = [
        Column("model", align="left"),
        *(Column(name, meaning, "lower") for name, meaning in DRIFT),
        Column("cosine", "Between an image's latents of both models, on average.", "higher"),
        Column("PSNR", "Of the latents, with the range of the teacher's as the peak.", "higher"),
    ]
    cells = [*(f"{value:.3g}" for value in _figures(drift)), _number(drift.cosine), _decibels(drift.psnr)]
    row = TableRow.of(Cell(student, colour=colour), *cells)
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
    rows = []
    for layer in fit.layers:
        size, figures = f"{layer.size[0]}×{layer.size[1]}", [*(layer.cka[time] for time in times), layer.mean]
        rows.append(TableRow.of(layer.teacher, layer.student, size, *map(_number, figures)))
    return Table(columns, rows, "CKA by timestep; layers are paired by the size of their maps and their depth.")


def _add_on_table(fit: Fit) -> Table:
    columns = [
        Column("add-on", align="left"),
        Column("cosine", "Of its effect on the student with its effect on the teacher: mean shifts of features.", "higher"),
        Column("ratio", "How far the student's features shift, as a multiple of the teacher's; 1 is as far."),
        Column("repeated", "Cosine of the teacher's own shifts on two halves of the images: how sure the cosine is."),
        Column("left out", "Modules of a LoRA that the student has no place for."),
    ]

    def row(one: AddOnFit) -> TableRow:
        effect = one.effect
        numbers = (None, None, None) if effect is None else (effect.cosine, effect.ratio, effect.repeated)
        left_out = str(len(one.unfit)) if one.kind == "LoRA" else ""
        return TableRow.of(f"{one.kind} {one.name}", *map(_number, numbers), left_out)

    return Table(columns, [row(one) for one in fit.add_ons], f"Features of {fit.extractor}.")


def _doubt(one: AddOnFit) -> str:
    repeated = one.effect.repeated if one.effect else None
    if repeated is None or repeated >= UNSURE:
        return ""
    return (
        f"The effect of {one.name} on the teacher itself differs from one half of the images to the other (cosine "
        f"{repeated:.2f}): its figures take more images."
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _decibels(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.1f} dB"
