"""Trajectories of the teacher from fixed noise and prompts to latents: generated once, kept on disk, used over many epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from gendistill.data.batches import Batch, LatentData, Trajectories, condition_rows, conditioning_of
from gendistill.data.cached import PART_SIZE, Progress, RowMaker, cached_rows
from gendistill.data.trajectory_teachers import TrajectoryTeacher, TrajectoryTeachers
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import Teacher
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.runtime.store import StoredPart
from gendistill.runtime.stored_rows import StoredRows
from gendistill.samplers import dpm_solver_path, images_at_once
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction, trailing

TRAJECTORIES_SEED = 50_000_017  # differs from every training seed


class TrajectoryData:
    """Cached trajectories, with the data of the other losses: a row is the index of a trajectory and of a sample.

    Args:
        times: (K + 1,) timesteps of the points.
        ends: end points that replace the last points of the trajectories as targets; None to keep the last points.
    """

    def __init__(self, trajectories: StoredRows, times: Tensor, data: LatentData, ends: StoredRows | None = None) -> None:
        self.trajectories, self.times, self.data, self.ends = trajectories, times, data, ends

    def __len__(self) -> int:
        return len(self.trajectories)

    def fingerprint(self) -> str:
        return self.trajectories.key

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """(batch_size, 2): indices of trajectories and of samples, each in an independent order."""
        generated = indices_of_step(seed + 1, step, batch_size, len(self))
        return torch.stack([generated, self.data.rows_of_step(seed, step, batch_size)], 1)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> Batch:
        batch = self.data.batch(rows[:, 1].contiguous(), random, device)
        return Batch(batch.latents, batch.conditioning, self.read(rows[:, 0].contiguous(), device))

    def read(self, numbers: Tensor, device: torch.device | str = "cpu") -> Trajectories:
        """The trajectories with the indices `numbers` (B,) int64."""
        tensors = self.trajectories.rows(numbers)
        points = tensors["points"].float()
        if self.ends is not None:
            points[:, -1] = self.ends.rows(numbers)["ends"].float()
        return Trajectories(to_device(points, device), to_device(self.times, device), conditioning_of(tensors).to(device))

    @property
    def described(self) -> str:
        ends = "" if self.ends is None else ", ending at the latents of the previous generation,"
        return f"{self.trajectories.provenance['described']}{ends} and {self.data.described}"

    def summary(self) -> dict[str, Any]:
        ends = {} if self.ends is None else {"ends_cache": self.ends.key}
        return {**self.data.summary(), "trajectories": len(self), "trajectories_cache": self.trajectories.key, **ends}


def generate_trajectories(
    teacher: Teacher,
    data: LatentData,
    guidance: GuidanceConfig,
    cache: str,
    *,
    count: int,
    steps: int,
    teachers: Mapping[str, float | str] | None = None,
    texts: Callable[[], list[str]] = list,
    progress: Progress | None = None,
) -> TrajectoryData:
    """`count` trajectories of the teacher in `steps` steps, read from the cache or generated into it first.

    The solver is DPM-Solver++ of second order (Lu et al. 2022) on the trailing grid, under the conditions of the data. The
    guidance scale is `guidance.scale`; in guidance mode `embedded`, each trajectory samples a scale from `guidance.range`.

    Args:
        teachers: additional teachers, see `TrajectoryTeachers`.
        texts: returns the prompt of every row of the data; called if `teachers` are chosen by prompt.
        progress: called with the number of trajectories after each batch that this process generates.

    Raises:
        ValueError: the images of the data have several sizes, or an additional teacher does not match the teacher.
    """
    if len(data.cache.groups) > 1:
        raise ValueError("data.crop buckets: trajectories have one size; expects center or random with alignment")
    schedule = teacher.denoiser.schedule
    times = torch.cat([trailing(steps, schedule.num_train_timesteps), torch.tensor([schedule.clean])])
    scale = guidance.range if guidance.mode == "embedded" else guidance.scale
    maker = GeneratedTrajectories(teacher, TrajectoryTeachers(teacher, teachers or {}, texts), data, count, steps, scale)
    return TrajectoryData(cached_rows(cache, maker, progress), times, data)


@dataclass(frozen=True)
class GeneratedTrajectories(RowMaker[int]):
    """`count` trajectories of teachers from noise, under the conditions of `data`.

    Attributes:
        guidance: the guidance scale, or the range from which each trajectory samples one.
    """

    teacher: Teacher
    teachers: TrajectoryTeachers
    data: LatentData
    count: int
    steps: int
    guidance: float | tuple[float, float]

    @property
    def described(self) -> str:
        return f"{self.count} trajectories of {self.teachers.described}"

    def items(self) -> range:
        return range(self.count)

    @torch.no_grad()
    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        teacher, steps, guidance = self.teacher, self.steps, self.guidance
        random = PerSampleRandom(TRAJECTORIES_SEED, 0, items[0], len(items))
        rows = indices_of_step(TRAJECTORIES_SEED, items[0] // PART_SIZE, PART_SIZE, len(self.data))[: len(items)]
        batch = self.data.batch(rows, random)
        noise = random.normal(batch.latents.shape[1:])
        scale: Tensor | float = (
            guidance[0] + (guidance[1] - guidance[0]) * random.uniform() if isinstance(guidance, tuple) else guidance
        )
        points = torch.empty(len(items), steps + 1, *noise.shape[1:], dtype=torch.float16)
        at_once = images_at_once(isqrt(noise[0, 0].numel()) * teacher.codec.factor)
        for trajectory_teacher, indices in self.teachers.assigned(rows):
            for part in indices.split(at_once):
                scales = scale[part].to(teacher.pipeline.device) if isinstance(scale, Tensor) else scale
                trajectories = _trajectories(teacher, trajectory_teacher, steps, noise[part], batch.conditioning[part], scales)
                points[part] = trajectories.half().cpu()
                if progress:
                    progress(len(part))
        conditioning = batch.conditioning.with_guidance(scale) if isinstance(scale, Tensor) else batch.conditioning
        return StoredPart({"generated": {"points": points, **condition_rows(conditioning, teacher.family.cache_dtype)}})


def _trajectories(
    teacher: Teacher,
    trajectory_teacher: TrajectoryTeacher,
    steps: int,
    noise: Tensor,
    conditioning: Conditioning,
    scale: Tensor | float,
) -> Tensor:
    """All points (B, K + 1, C, h, w) of the trajectories from `noise`."""
    device, schedule = teacher.pipeline.device, teacher.denoiser.schedule
    conditioning, unconditional = conditioning.to(device), teacher.unconditional()

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        return trajectory_teacher(x_t, t, conditioning, unconditional, scale)

    return dpm_solver_path(predict, noise.to(device), trailing(steps, schedule.num_train_timesteps), schedule)


def ending_with(data: TrajectoryData, student: Denoiser, steps: int, cache: str) -> TrajectoryData:
    """The same trajectories, ending at the latents that a student generates from their noise in `steps` DDIM steps; cached.

    The next generation learns from them (born-again networks, Furlanello et al. 2018).
    """
    ends = cached_rows(cache, TrajectoryEnds(data, student, steps))
    return TrajectoryData(data.trajectories, data.times, data.data, ends)


@dataclass(frozen=True)
class TrajectoryEnds(RowMaker[int]):
    """The latents that a student generates from the noise of trajectories."""

    data: TrajectoryData
    student: Denoiser
    steps: int

    @property
    def described(self) -> str:
        return "ends of trajectories"

    def items(self) -> range:
        return range(len(self.data))

    def make(self, items: list[int], progress: Progress | None) -> StoredPart:
        student = self.student
        trajectories = self.data.read(torch.tensor(items), next(student.network.parameters()).device)
        at_once = images_at_once(8 * trajectories.noise.shape[-1])
        ends = [
            few_step_rollout(student, trajectories.noise[part], trajectories.conditioning[part], self.steps)[0].half().cpu()
            for part in torch.arange(len(items)).split(at_once)
        ]
        return StoredPart({"generated": {"ends": torch.cat(ends)}})
