"""Trajectories of the teacher from fixed noise and prompts to latents: generated once, kept on disk, used over many epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from gendistill.data.batches import Batch, LatentData, Trajectories, condition_rows, conditioning_of
from gendistill.data.cached import PART_SIZE, Progress, cached_rows
from gendistill.data.provenance import denoiser_provenance, teacher_provenance
from gendistill.data.trajectory_teachers import TrajectoryTeacher, TrajectoryTeachers
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import Teacher
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.runtime.store import StoredPart
from gendistill.runtime.stored_rows import StoredRows
from gendistill.samplers import images_at_once
from gendistill.samplers.conditioning import Conditioning

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
    times = torch.cat([_solver(teacher, steps).timesteps, torch.tensor([int(teacher.denoiser.schedule.clean)])])
    trajectory_teachers = TrajectoryTeachers(teacher, teachers or {}, texts)
    key_parts = {
        "teacher": teacher_provenance(teacher),
        "conditions": data.cache.key,
        "count": count,
        "steps": steps,
        "guidance": list(guidance.range) if guidance.mode == "embedded" else guidance.scale,
        **trajectory_teachers.key_parts,
    }
    make = partial(_generate, teacher, trajectory_teachers, data, steps, guidance, progress)
    described = f"{count} trajectories of {trajectory_teachers.described}"
    return TrajectoryData(cached_rows(cache, key_parts, described, lambda: range(count), make), times, data)


def _solver(teacher: Teacher, steps: int) -> Any:
    solver = DPMSolverMultistepScheduler.from_config(teacher.pipeline.scheduler.config, timestep_spacing="trailing")
    solver.set_timesteps(steps)
    return solver


@torch.no_grad()
def _generate(
    teacher: Teacher,
    trajectory_teachers: TrajectoryTeachers,
    data: LatentData,
    steps: int,
    guidance: GuidanceConfig,
    progress: Progress | None,
    numbers: list[int],
) -> StoredPart:
    random = PerSampleRandom(TRAJECTORIES_SEED, 0, numbers[0], len(numbers))
    rows = indices_of_step(TRAJECTORIES_SEED, numbers[0] // PART_SIZE, PART_SIZE, len(data))[: len(numbers)]
    batch = data.batch(rows, random)
    noise, (low, high) = random.normal(batch.latents.shape[1:]), guidance.range
    scale = low + (high - low) * random.uniform() if guidance.mode == "embedded" else None
    points = torch.empty(len(numbers), steps + 1, *noise.shape[1:], dtype=torch.float16)
    at_once = images_at_once(isqrt(noise[0, 0].numel()) * teacher.codec.factor)
    for trajectory_teacher, indices in trajectory_teachers.assigned(rows):
        for part in indices.split(at_once):
            scales = guidance.scale if scale is None else scale[part].to(teacher.pipeline.device)
            trajectories = _trajectories(teacher, trajectory_teacher, steps, noise[part], batch.conditioning[part], scales)
            points[part] = trajectories.half().cpu()
            if progress:
                progress(len(part))
    conditioning = batch.conditioning if scale is None else batch.conditioning.with_guidance(scale)
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
    device, denoiser = teacher.pipeline.device, teacher.denoiser
    solver, x = _solver(teacher, steps), noise.to(device)
    conditioning, unconditional = conditioning.to(device), teacher.unconditional()
    points = [x]
    for t in solver.timesteps:
        timesteps = t.to(device).expand(len(x))
        prediction = trajectory_teacher(x, timesteps, conditioning, unconditional, scale)
        x = solver.step(denoiser.output_of(prediction, timesteps), t, x).prev_sample
        points.append(x)
    return torch.stack(points, 1)


def ending_with(data: TrajectoryData, student: Denoiser, steps: int, cache: str) -> TrajectoryData:
    """The same trajectories, ending at the latents that a student generates from their noise in `steps` DDIM steps; cached.

    The next generation learns from them (born-again networks, Furlanello et al. 2018).
    """
    key_parts = {"trajectories": data.trajectories.key, "student": denoiser_provenance(student), "steps": steps}
    make = partial(_ends, data, student, steps)
    ends = cached_rows(cache, key_parts, "ends of trajectories", lambda: range(len(data)), make)
    return TrajectoryData(data.trajectories, data.times, data.data, ends)


def _ends(data: TrajectoryData, student: Denoiser, steps: int, numbers: list[int]) -> StoredPart:
    trajectories = data.read(torch.tensor(numbers), next(student.network.parameters()).device)
    at_once = images_at_once(8 * trajectories.noise.shape[-1])
    ends = [
        few_step_rollout(student, trajectories.noise[part], trajectories.conditioning[part], steps)[0].half().cpu()
        for part in torch.arange(len(numbers)).split(at_once)
    ]
    return StoredPart({"generated": {"ends": torch.cat(ends)}})
