"""Samples of a student by its own sampler, from noise, as after training: backward simulation (Yin et al. 2024b, 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.rollout import few_step_rollout, rollout_times
from gendistill.diffusion.trained_networks import Networks
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import noisy_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, fresh_noise
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class TimesConfig(Section):
    """The timesteps at which the scores are compared, and at which the fake score is trained."""

    distribution: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="Distribution of the timesteps: uniform, or the logistic function of a normal variable",
        json_schema_extra=about(paper=papers.SD3, at="section 3.1"),
    )
    mean: float = Field(
        0.0,
        description="Mean of the normal variable of logit_normal",
        json_schema_extra=about(paper=papers.SD3, at="equation 19"),
    )
    std: float = Field(
        1.0,
        gt=0,
        description="Standard deviation of the normal variable of logit_normal",
        json_schema_extra=about(paper=papers.SD3, at="equation 19"),
    )
    range: tuple[float, float] = Field(
        (0.02, 0.98),
        description="Lowest and highest timestep as fractions of all timesteps, or of those of a segment",
        json_schema_extra=about(paper=papers.DMD, at="section 4.1"),
    )

    @field_validator("range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError("two rising fractions such as [0.02, 0.98]")
        return value

    def sample(self, lower: int, upper: int, random: PerSampleRandom) -> Tensor:
        """Timesteps (B,) int64 above `lower`, at most `upper`."""
        uniform = self.distribution == "uniform"
        u = random.uniform() if uniform else torch.sigmoid(self.mean + self.std * random.normal(()))
        low, high = self.range
        return lower + ((low + (high - low) * u) * (upper - lower)).ceil().clamp(min=1).long()


def numbered_steps(counts: Sequence[int], schedule: NoiseSchedule, segments: bool = False) -> dict[tuple[int, int], int]:
    """The number of step k of the sampler of N steps, by (N, k).

    Steps from the same distribution of x_t to the same kind of sample have one number: the first step of every sampler is a
    prediction of x_0 from the noise. With `segments` they arrive at different points.
    """
    known: dict[tuple[int, ...], int] = {}
    return {
        (count, k): known.setdefault(tuple(rollout_times(count, schedule)[: k + 1 + segments]), len(known))
        for count in counts
        for k in range(count)
    }


@dataclass(frozen=True)
class Samples:
    """Samples of the student from one of its steps.

    Attributes:
        x_s: (B, ...), what is matched: x_0, or the point at which the step arrives.
        s: (B,), its timestep, `clean` for x_0.
        x_0: (B, ...), the prediction of x_0 in that step.
        times: the timesteps at which x_s is matched: above the first, at most the second.
        step: the number of the step.
        conditioning: of the student (B).
        scale: guidance scale of the teacher, (B,) or one number.
    """

    x_s: Tensor
    s: Tensor
    x_0: Tensor
    times: tuple[int, int]
    step: int
    conditioning: Conditioning
    scale: Tensor | float


class StudentSampler:
    """The sampler of a student in training.

    Args:
        steps: step counts of the student's samplers.
        solver: the solver of these samplers, `ddim`, `tcd` or `lcm`.
        segments: whether a sample is the point at which a step arrives, in place of x_0.
        last: whether samples are those of the last step of a sampler alone, which are its images.
    """

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        steps: Sequence[int],
        solver: str = "ddim",
        *,
        segments: bool = False,
        last: bool = False,
    ) -> None:
        self.networks, self.guidance, self.steps = networks, guidance, list(steps)
        self.segments, self.last, self.eta = segments, last, fresh_noise(solver)
        numbers = numbered_steps(steps, networks.teacher.schedule, segments)
        self.numbers = {step: number for step, number in numbers.items() if not last or step[1] == step[0] - 1}

    def generate(self, batch: Batch, random: PerSampleRandom, *, learning: bool) -> Samples:
        """Samples of a step of the student, for the conditions of a batch; its sampler makes the steps before without gradient.

        The step count and the step are random, the same for all samples of an optimizer step.
        """
        student, shape, device = self.networks.student, batch.latents.shape[1:], batch.latents.device
        schedule = student.schedule
        conditioning, scale = self.guidance.sample(batch.conditioning, random)
        which_count, which_step = random.of_step(2)
        count = self.steps[int(which_count * len(self.steps))]
        k = count - 1 if self.last else int(which_step * count)
        noise = to_device(random.normal(shape), device)
        sampler_step = partial(self._sampler_step, random=random)
        x_t, t = few_step_rollout(student, noise, conditioning, count, k, sampler_step)
        with torch.set_grad_enabled(learning):
            prediction = student(x_t, t, conditioning)
            lower, upper = schedule.clean, schedule.num_train_timesteps - 1
            if self.segments:
                upper, lower = rollout_times(count, schedule)[k : k + 2]
            s = torch.full_like(t, lower)
            x_s = sampler_step(prediction, s)
        number = self.numbers[count, k]
        return Samples(x_s, s, prediction.x_0, (lower, upper), number, conditioning, scale)

    def _sampler_step(self, prediction: Prediction, s: Tensor, random: PerSampleRandom) -> Tensor:
        """x_s (B, ...) of a step of the student's sampler."""
        noise = random.normal(prediction.x_0.shape[1:]) if self.eta else torch.zeros(())
        return noisy_step(prediction, to_device(noise, s.device), s, self.networks.student.schedule, self.eta)
