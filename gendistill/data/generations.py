"""Ways of the teacher that end where a student paints: what the next generation learns (Furlanello et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from gendistill.data.cache.building import build_or_open
from gendistill.data.cache.row_cache import Part, cache_key
from gendistill.data.encode import PART_SIZE, batched, weights_fingerprint
from gendistill.data.trajectories import TrajectoryData
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.rollout import come_to
from gendistill.samplers import pictures_at_once


def ending_with(data: TrajectoryData, student: Denoiser, steps: int, cache: str) -> TrajectoryData:
    """The same ways, each with what the student paints of its noise in so many steps of DDIM for its end; kept in the cache."""
    made_by = {"ways": data.trajectories.key, "student": weights_fingerprint(student.network), "steps": steps}

    def parts() -> Iterator[Callable[[], Part]]:
        for numbers in batched(range(len(data)), PART_SIZE):
            yield partial(_paint, data, student, steps, numbers)

    ends = build_or_open(Path(cache), cache_key(**made_by), {**made_by, "described": "ends of trajectories"}, parts)
    return TrajectoryData(data.trajectories, data.times, data.data, ends)


def _paint(data: TrajectoryData, student: Denoiser, steps: int, numbers: list[int]) -> Part:
    ways = data.ways(torch.tensor(numbers), next(student.network.parameters()).device)
    at_once = pictures_at_once(8 * ways.noise.shape[-1])
    ends = [
        come_to(student, ways.noise[part], ways.conditioning[part], steps)[0].half().cpu()
        for part in torch.arange(len(numbers)).split(at_once)
    ]
    return Part({"painted": {"ends": torch.cat(ends)}})
