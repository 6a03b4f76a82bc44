"""Several teachers in one latent space: an average of what they say, or one of them for each prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gendistill.data.provenance import codec_provenance, denoiser_provenance, fingerprints
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction

Painter = Callable[[Tensor, Tensor, Conditioning, Conditioning, Tensor | float], Prediction]
"""What is said of x_t (B, C, h, w) at t (B,) under a condition and no condition (B or 1), guided at a scale ((B,) or one)."""


class Painters:
    """Who paints which way.

    A prompt is painted by the first teacher whose pattern is found in it; where none is, by the average of the main teacher,
    with weight 1, and those that have a weight.

    Args:
        teacher: the main one, whose prompt encoder and noise schedule all share.
        others: weights, or patterns, by what `load_teacher` takes.
        texts: gives the prompt of every row of the data; asked where there are patterns.

    Attributes:
        made_by: what of the others decides how ways look; nothing where there are none.

    Raises:
        ValueError: one cannot be opened, or works in another space.
    """

    def __init__(self, teacher: Teacher, others: Mapping[str, float | str], texts: Callable[[], list[str]]) -> None:
        opened = {source: _beside(teacher, source) for source in others}
        weights = {source: float(of) for source, of in others.items() if not isinstance(of, str)}
        patterns = [(re.compile(of), source) for source, of in others.items() if isinstance(of, str)]
        averaged = [(teacher.denoiser, 1.0), *((opened[source].denoiser, weight) for source, weight in weights.items())]
        self._painters: list[Painter] = [partial(_averaged, averaged)]
        self._painters += [opened[source].denoiser.guided for _, source in patterns]
        self._number_of: Tensor | None = None  # of the painter of each row
        self.made_by: dict[str, Any] = {}
        self.described = "the teacher" if not others else f"the teacher and {', '.join(others)}"
        if others:
            prints = {source: denoiser_provenance(each.denoiser) for source, each in opened.items()}
            self.made_by = {"teachers": [[prints[source], of] for source, of in others.items()]}
        if patterns:
            prompts = texts()
            number_of = {text: _first([pattern for pattern, _ in patterns], text) for text in set(prompts)}
            self._number_of = torch.tensor([number_of[text] for text in prompts])

    def shared_out(self, rows: Tensor) -> Iterator[tuple[Painter, Tensor]]:
        """Each painter that has any of `rows` (n,) to paint, with their places in [0, n)."""
        numbers = torch.zeros_like(rows) if self._number_of is None else self._number_of[rows]
        for number in numbers.unique().tolist():
            yield self._painters[number], (numbers == number).nonzero()[:, 0]


def _first(patterns: list[re.Pattern[str]], text: str) -> int:
    """The number of the first that is found, from 1; 0 where none is."""
    return next((number for number, pattern in enumerate(patterns, start=1) if pattern.search(text)), 0)


def _averaged(
    averaged: list[tuple[Denoiser, float]],
    x_t: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    scale: Tensor | float,
) -> Prediction:
    said = [(denoiser.guided(x_t, t, conditioning, unconditional, scale), weight) for denoiser, weight in averaged]
    if len(said) == 1:
        return said[0][0]
    total = sum(weight for _, weight in said)
    x_0 = sum((weight / total * of.x_0 for of, weight in said), torch.zeros_like(x_t))
    eps = sum((weight / total * of.eps for of, weight in said), torch.zeros_like(x_t))
    return Prediction(x_0, eps)


def _beside(teacher: Teacher, source: str) -> Teacher:
    """Another teacher, in the main one's space."""
    main = teacher.network
    other = load_teacher(source, resolution=teacher.resolution, dtype=main.dtype, device=teacher.pipeline.device)
    shapes = [each.codec.latent_shape(each.resolution) for each in (teacher, other)]
    schedules = [(each.denoiser.schedule.num_train_timesteps, _levels(each)) for each in (teacher, other)]
    if shapes[0] != shapes[1] or codec_provenance(teacher.codec) != codec_provenance(other.codec):
        raise ValueError(
            f"align.teachers {source}: has another latent space than {teacher.source}; takes one with the same VAE"
        )
    if schedules[0][0] != schedules[1][0] or not torch.allclose(schedules[0][1], schedules[1][1]):
        raise ValueError(
            f"align.teachers {source}: was trained on another noise schedule than {teacher.source}; takes one with the same"
        )
    if fingerprints(teacher.prompt_encoders) != fingerprints(other.prompt_encoders) or teacher.own_prompts != other.own_prompts:
        raise ValueError(
            f"align.teachers {source}: reads prompts otherwise than {teacher.source}; takes one with the same text encoder, or "
            "the same classes"
        )
    return other


def _levels(teacher: Teacher) -> Tensor:
    """How much noise there is at each of its timesteps."""
    schedule = teacher.denoiser.schedule
    return schedule.sigma(torch.arange(schedule.num_train_timesteps))
