"""Scores as cells of a report's table: their short names, what they mean, and how many digits they deserve."""

from __future__ import annotations

from typing import Literal

from gendistill.evaluation.reporting import Cell, Column
from gendistill.metrics.evaluate import Evaluation, higher_is_better

EXPLAINED = {
    "fd": "Fréchet distance between the features of drawn and of real pictures.",
    "kd": "Kernel distance: an unbiased MMD² of the same features, times 1000.",
    "precision": "Share of drawn pictures that lie among the real ones.",
    "recall": "Share of real pictures that lie among the drawn ones.",
    "density": "How densely real pictures lie around drawn ones; may exceed 1.",
    "coverage": "Share of real pictures with a drawn one nearby.",
    "vendi": "Effective number of different pictures.",
    "diversity": "Mean cosine distance between pictures of the same prompt.",
    "clip_score": "How well a picture fits its prompt, 0 to 100.",
    "clip_r": "Share of pictures whose own prompt fits best among 100.",
    "psnr": "Nearness to the first row's picture of the same prompt and seed, in dB.",
    "ssim": "Structural similarity to the first row's picture of the same prompt and seed.",
    "feature_cosine": "Cosine of features with the first row's picture of the same prompt and seed.",
}
OF_MANY = ("fd", "fid", "vendi")  # whose intervals are for infinitely many pictures, and need not hold the value
SHORT = {"clip_score": "CLIP", "clip_r": "CLIP-R", "feature_cosine": "cosine", "psnr": "PSNR", "ssim": "SSIM"}


def score_column(name: str) -> Column:
    return Column(short_name(name), EXPLAINED.get(name.split("-")[0], ""), better(name))


def score_cell(row: Evaluation, name: str) -> Cell:
    """A score with its interval; empty where the row has none."""
    value, interval = row.scores.get(name), row.intervals.get(name)
    if value is None:
        return Cell("")
    times = 1000 if name.split("-")[0] in ("kd", "kid") else 1
    digits = {"clip_score": 1, "psnr": 1, "vendi": 1, "feature_cosine": 3}.get(name, 2)
    many = "∞ " if name.split("-")[0] in OF_MANY else ""
    small = "" if interval is None else f"{many}{times * interval[0]:.{digits}f}–{times * interval[1]:.{digits}f}"
    return Cell(f"{times * value:.{digits}f}", small, value)


def short_name(name: str) -> str:
    return SHORT.get(name, f"{name} ×1000" if name.split("-")[0] in ("kd", "kid") else name)


def better(name: str) -> Literal["lower", "higher"]:
    return "higher" if higher_is_better(name) else "lower"
