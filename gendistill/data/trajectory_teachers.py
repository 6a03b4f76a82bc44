"""Several teachers in one latent space: the average of their predictions, or one teacher per prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.provenance import provenance
from gendistill.schedulers import Prediction

TrajectoryTeacher = Callable[[Tensor, Tensor, Conditioning, Conditioning, Tensor | float], Prediction]
"""The guided prediction for x_t (B, C, h, w) at t (B,), a condition, no condition (B or 1) and a scale ((B,) or a float)."""


class TrajectoryTeachers:
    """Assigns the teachers to the trajectories.

    The first teacher whose pattern matches the prompt generates the trajectory; without a match, the average of the main
    teacher, with weight 1, and of the teachers with a weight generates it.

    Args:
        teacher: the main teacher, whose prompt encoder and noise schedule all teachers share.
        others: weights, or patterns, by a source for `load_teacher`.
        texts: returns the prompt of every row of the data; called if there are patterns.

    Raises:
        ValueError: a teacher cannot be opened, or has another latent space.
    """

    def __init__(self, teacher: Teacher, others: Mapping[str, float | str], texts: Callable[[], list[str]]) -> None:
        opened = {source: _open_matching(teacher, source) for source in others}
        weights = {source: float(value) for source, value in others.items() if not isinstance(value, str)}
        patterns = [(re.compile(value), source) for source, value in others.items() if isinstance(value, str)]
        averaged = [(teacher.denoiser, 1.0), *((opened[source].denoiser, weight) for source, weight in weights.items())]
        self._teachers: list[TrajectoryTeacher] = [partial(_averaged, averaged)]
        self._teachers += [opened[source].denoiser.guided for _, source in patterns]
        self._number_of: Tensor | None = None  # index in _teachers of each row
        self.described = "the teacher" if not others else f"the teacher and {', '.join(others)}"
        self._others = [(opened[source].denoiser, value) for source, value in others.items()]
        if patterns:
            prompts = texts()
            number_of = {text: _first_match([pattern for pattern, _ in patterns], text) for text in set(prompts)}
            self._number_of = torch.tensor([number_of[text] for text in prompts])

    def fingerprint(self) -> Any:
        """The other teachers with their weights and patterns, as JSON values."""
        return provenance(self._others)

    def assigned(self, rows: Tensor) -> Iterator[tuple[TrajectoryTeacher, Tensor]]:
        """Each teacher that generates trajectories of `rows` (n,), with the indices in [0, n) of these rows."""
        numbers = torch.zeros_like(rows) if self._number_of is None else self._number_of[rows]
        for number in numbers.unique().tolist():
            yield self._teachers[number], (numbers == number).nonzero()[:, 0]


def _first_match(patterns: list[re.Pattern[str]], text: str) -> int:
    """The number of the first pattern that matches, from 1; 0 if no pattern matches."""
    return next((number for number, pattern in enumerate(patterns, start=1) if pattern.search(text)), 0)


def _averaged(
    averaged: list[tuple[Denoiser, float]],
    x_t: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    scale: Tensor | float,
) -> Prediction:
    """The weighted average of the guided predictions of several denoisers."""
    predictions = [(denoiser.guided(x_t, t, conditioning, unconditional, scale), weight) for denoiser, weight in averaged]
    if len(predictions) == 1:
        return predictions[0][0]
    total = sum(weight for _, weight in predictions)
    x_0 = sum((weight / total * prediction.x_0 for prediction, weight in predictions), torch.zeros_like(x_t))
    eps = sum((weight / total * prediction.eps for prediction, weight in predictions), torch.zeros_like(x_t))
    return Prediction(x_0, eps)


def _open_matching(teacher: Teacher, source: str) -> Teacher:
    """Another teacher; raises ValueError if its latent space, noise schedule or prompt encoders differ from the first one's."""
    main = teacher.network
    other = load_teacher(source, size=teacher.size, dtype=main.dtype, device=teacher.pipeline.device)
    shapes = [model.codec.latent_shape(model.size) for model in (teacher, other)]
    schedules = [(model.denoiser.schedule.num_train_timesteps, _noise_levels(model)) for model in (teacher, other)]
    if shapes[0] != shapes[1] or provenance(teacher.codec) != provenance(other.codec):
        raise ValueError(
            f"align.teachers {source}: has another latent space than {teacher.source}; expects a teacher with the same VAE"
        )
    if schedules[0][0] != schedules[1][0] or not torch.allclose(schedules[0][1], schedules[1][1]):
        raise ValueError(
            f"align.teachers {source}: was trained on another noise schedule than {teacher.source}; "
            "expects a teacher with the same schedule"
        )
    if teacher.prompt_encoder.fingerprint() != other.prompt_encoder.fingerprint():
        raise ValueError(
            f"align.teachers {source}: encodes prompts differently from {teacher.source}; "
            "expects a teacher with the same text encoder, or the same classes"
        )
    return other


def _noise_levels(teacher: Teacher) -> Tensor:
    """The noise level sigma at each timestep of a teacher."""
    schedule = teacher.denoiser.schedule
    return schedule.sigma(torch.arange(schedule.num_train_timesteps))
