"""The fit of a student to its teacher as a report section with tables and two plots, and as plain data."""

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

FEW_IMAGES = 16  # with fewer images, the figures of layers and add-ons are unreliable
SAME = 1e-9  # squared distances below it are rounding errors
UNSURE = 0.5  # minimum cosine between the teacher's own shifts on two halves of the images

# name, explanation
DRIFT = (
    ("mean", "Distance of the channels' means, in the teacher's standard deviations."),
    ("covariance", "Frobenius distance of the channels' covariances, as a fraction of the teacher's norm."),
    ("spread (Bures)", "The covariance term of the Fréchet distance, as a fraction of the teacher's variance."),
    ("unrotated", "Squared distance of the latents, centred and scaled to length 1, before any rotation: from 0 to 4."),
    ("Procrustes", "Squared distance after the best rotation of the channels: from 0 to 2."),
)


def fit_section(fit: Fit, student: str = "student", teacher: str = "teacher", colour: int = 1) -> PageSection:
    """The section of one student.

    Args:
        student, teacher: names of the models.
        colour: the student's number from `colour_numbers`.
    """
    generated, compared = fit.images
    blocks: list[Block] = [Cards(_cards(fit, colour))]
    if compared < FEW_IMAGES:
        blocks.append(Notice(f"{compared} images are few: the figures of layers and add-ons require {FEW_IMAGES} or more."))
    blocks += [
        Text(_describe_drift(fit.latents, student, teacher), "Latents"),
        Figure(drift_plot(fit.latents, student, colour), "0 means no drift."),
        _drift_table(fit.latents, student, colour),
    ]
    if fit.layers:
        blocks += [
            Text(f"Unbiased linear CKA of the feature maps of the networks' blocks, for {compared} noised latents.", "Layers"),
            Figure(layers_plot(fit), "1: equal up to rotation and scale. 0: unrelated."),
            _layer_table(fit),
        ]
    if fit.unpaired:
        blocks.append(Text(f"Layers of {teacher} without a counterpart in {student}: {', '.join(fit.unpaired)}."))
    if fit.add_ons:
        lead = f"LoRAs and ControlNets that were trained for {teacher}, loaded into both models."
        blocks += [Text(lead, "Add-ons"), _add_on_table(fit)]
        blocks += [Text(f"{add_on.name}: {note}") for add_on in fit.add_ons for note in add_on.notes]
        blocks += [Notice(_doubt(add_on)) for add_on in fit.add_ons if _doubt(add_on)]
        missing = [(add_on.name, ", ".join(add_on.unfit)) for add_on in fit.add_ons if add_on.unfit]
        if missing:
            blocks.append(Details("Modules of a LoRA that were not loaded", missing))
    sampling = [(name, f"{steps} steps, guidance {scale:g}") for name, (steps, scale) in fit.sampling.items()]
    images = ("images", f"{generated} per model, same noise and prompts")
    blocks.append(Details("How it was measured", [images, *sampling]))
    return PageSection(f"Does {student} still fit?", blocks, f"{student} as a replacement of {teacher}.")


def as_json(fit: Fit) -> dict[str, Any]:
    """All figures as plain types, named as in `Fit`; infinite and undefined values are None, timesteps are strings."""
    result: dict[str, Any] = json.loads(TypeAdapter(Fit).dump_json(fit))
    for layer, values in zip(fit.layers, result["layers"], strict=True):
        values["mean"] = layer.mean
    for add_on, values in zip(fit.add_ons, result["add_ons"], strict=True):
        if add_on.effect is not None:
            values["effect"] |= {"ratio": add_on.effect.ratio, "kept": add_on.effect.kept}
    return result


def drift_plot(drift: LatentDrift, student: str = "student", colour: int = 1) -> Plot:
    """The distances of the latents from the teacher's; 0 means no drift."""
    values = {student: [PlottedValue(value) for value in _figures(drift)]}
    return by_row(f"drift of {student}'s latents", [name for name, _ in DRIFT], values, [colour])


def layers_plot(fit: Fit) -> Plot:
    """CKA by layer, from the first block to the last, with one marker per timestep.

    Raises:
        ValueError: no layers were compared.
    """
    times = list(fit.layers[0].cka) if fit.layers else []
    values = {f"t = {time}": [PlottedValue(layer.cka[time]) for layer in fit.layers] for time in times}
    return by_row("CKA", [layer.teacher for layer in fit.layers], values, range(1, len(times) + 1))


def _figures(drift: LatentDrift) -> tuple[float, ...]:
    """The values in the order of `DRIFT`."""
    moments = drift.moments
    return moments.mean, moments.covariance, moments.bures, drift.unrotated, drift.procrustes


def _cards(fit: Fit, colour: int) -> list[Card]:
    latents = fit.latents
    cards = [
        Card(_number(latents.cosine), "cosine of latents", "same noise and prompt; 1 means equal", colour),
        Card(_decibels(latents.psnr), "PSNR of latents", "the peak is the teacher's range", colour),
    ]
    if fit.mean_cka is not None:
        cards.append(Card(_number(fit.mean_cka), "CKA of layers", f"mean of {len(fit.layers)}; 1 means equal", colour))
    for add_on in fit.add_ons:
        kept = add_on.effect.kept if add_on.effect else None
        small = "of its effect on the teacher is kept" if add_on.effect else "does not run in both models"
        cards.append(Card(_number(kept), f"{add_on.kind} {add_on.name}", small, colour))
    return cards


def _describe_drift(drift: LatentDrift, student: str, teacher: str) -> str:
    if drift.unrotated < SAME:
        return f"{student} samples the same latents as {teacher}."
    removed = max(0.0, 1 - drift.procrustes / drift.unrotated)
    if removed > 0.5:
        return f"{student}'s latent space is rotated: the best rotation of its channels removes {removed:.0%} of the distance."
    return f"The best rotation of {student}'s channels removes {removed:.0%} of the distance: the space is not rotated."


def _drift_table(drift: LatentDrift, student: str, colour: int) -> Table:
    columns = [
        Column("model", align="left"),
        *(Column(name, meaning, "lower") for name, meaning in DRIFT),
        Column("cosine", "Mean cosine between an image's latents of both models.", "higher"),
        Column("PSNR", "PSNR of the latents; the peak is the range of the teacher's.", "higher"),
    ]
    cells = [*(f"{value:.3g}" for value in _figures(drift)), _number(drift.cosine), _decibels(drift.psnr)]
    row = TableRow.from_cells(Cell(student, colour=colour), *cells)
    return Table(columns, [row], "Drift of the latents for the same noise and prompts.")


def _layer_table(fit: Fit) -> Table:
    times = list(fit.layers[0].cka)
    columns = [
        Column("teacher's layer", align="left"),
        Column("student's layer", align="left"),
        Column("size", "Height and width of the feature maps."),
        *(Column(f"t = {time}", better="higher") for time in times),
        Column("mean", better="higher"),
    ]
    rows = []
    for layer in fit.layers:
        size, figures = f"{layer.size[0]}×{layer.size[1]}", [*(layer.cka[time] for time in times), layer.mean]
        rows.append(TableRow.from_cells(layer.teacher, layer.student, size, *map(_number, figures)))
    return Table(columns, rows, "CKA by timestep; layers are paired by the size of their feature maps and by their depth.")


def _add_on_table(fit: Fit) -> Table:
    columns = [
        Column("add-on", align="left"),
        Column("kept", "The student's mean feature shift along the teacher's, relative to it; 1 means the same effect."),
        Column("cosine", "Cosine between the mean feature shifts of the student and of the teacher.", "higher"),
        Column("ratio", "Length of the student's mean feature shift relative to the teacher's; 1 means equal."),
        Column("repeated", "Cosine between the teacher's shifts on two halves of the images: the reliability of the cosine."),
        Column("not loaded", "Modules of a LoRA without a counterpart in the student."),
    ]

    def row(add_on: AddOnFit) -> TableRow:
        effect = add_on.effect
        numbers = (None,) * 4 if effect is None else (effect.kept, effect.cosine, effect.ratio, effect.repeated)
        not_loaded = str(len(add_on.unfit)) if add_on.kind == "LoRA" else ""
        return TableRow.from_cells(f"{add_on.kind} {add_on.name}", *map(_number, numbers), not_loaded)

    return Table(columns, [row(add_on) for add_on in fit.add_ons], f"Features of {fit.extractor}.")


def _doubt(add_on: AddOnFit) -> str:
    repeated = add_on.effect.repeated if add_on.effect else None
    if repeated is None or repeated >= UNSURE:
        return ""
    return (
        f"The effect of {add_on.name} on the teacher differs between the two halves of the images (cosine {repeated:.2f}): "
        "its figures require more images."
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _decibels(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.1f} dB"
