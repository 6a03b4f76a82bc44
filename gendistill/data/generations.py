"""Ways of the teacher that end where a student paints: what the next generation learns (Furlanello et al. 2018)."""

from __future__ import annotations

from functools import partial

import torch

from gendistill.data.cached import cached_rows
from gendistill.data.provenance import denoiser_provenance
from gendistill.data.trajectories import TrajectoryData
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.rollout import come_to
from gendistill.runtime.store import StoredPart
from gendistill.samplers import pictures_at_once


def ending_with(data: TrajectoryData, student: Denoiser, steps: int, cache: str) -> TrajectoryData:
    """The same ways, each with what the student paints of its noise in so many steps of DDIM for its end; kept in the cache."""
    made_by = {"ways": data.trajectories.key, "student": denoiser_provenance(student), "steps": steps}
    make = partial(_paint, data, student, steps)
    ends = cached_rows(cache, made_by, "ends of trajectories", lambda: range(len(data)), make)
    return TrajectoryData(data.trajectories, data.times, data.data, ends)


def _paint(data: TrajectoryData, student: Denoiser, steps: int, numbers: list[int]) -> StoredPart:
    ways = data.ways(torch.tensor(numbers), next(student.network.parameters()).device)
    at_once = pictures_at_once(8 * ways.noise.shape[-1])
    ends = [
        come_to(student, ways.noise[part], ways.conditioning[part], steps)[0].half().cpu()
        for part in torch.arange(len(numbers)).split(at_once)
    ]
    return StoredPart({"painted": {"ends": torch.cat(ends)}})
