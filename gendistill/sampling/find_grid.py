"""`gendistill grid`: the timesteps at which few DDIM steps of a teacher stray least from its many, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendistill.diffusion.teacher import Teacher, load_teacher, teacher_of
from gendistill.runtime.device import usable_device
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import images_at_once
from gendistill.schedulers import cheapest_path, step_costs, trailing

CANDIDATES = 40  # holds the trailing grids of 1, 2, 4, 5, 8, 10 and 20 steps
SEED = 30_000_001  # of the trajectories; apart from those of training and of evaluations


@dataclass(frozen=True)
class FoundGrid:
    """A grid and how far its steps stray, as the root of the summed `step_costs`, beside the trailing grid's.

    `trailing_error` is None where the trailing grid's timesteps are not among the candidates.
    """

    timesteps: list[int]
    error: float
    trailing_error: float | None


def searchable(pipeline: Any) -> bool:
    """Whether a pipeline can be followed: one that no student could be taught by is only sampled from."""
    try:
        teacher_of(pipeline, "")
    except ValueError:
        return False
    return True


@torch.no_grad()
def search_grids(
    teacher: Teacher,
    prompts: Sequence[str],
    counts: Sequence[int],
    guidance_scale: float,
    progress: Callable[[int], object] | None = None,
) -> dict[int, FoundGrid]:
    """The best grid of each step count among `CANDIDATES` trailing timesteps, along one trajectory a prompt.

    Args:
        prompts: those that the teacher will be asked; some dozens tell enough.
        guidance_scale: that it will be asked with; 1 is none.

    Raises:
        ValueError: a step count is not in [1, CANDIDATES].
    """
    schedule = teacher.denoiser.schedule
    candidates = trailing(CANDIDATES, schedule.num_train_timesteps)
    at_once, unconditional = images_at_once(teacher.resolution), teacher.unconditional()
    costs = torch.zeros(CANDIDATES, CANDIDATES + 1, dtype=torch.float64)
    shape = teacher.codec.latent_shape(teacher.resolution)
    for start in range(0, len(prompts), at_once):
        part = list(prompts[start : start + at_once])
        conditioning = teacher.encode_prompts(part)
        generators = [torch.Generator().manual_seed(SEED + start + number) for number in range(len(part))]
        noise = [torch.randn(shape, generator=generator) for generator in generators]

        def guided(x_t: Tensor, t: Tensor, conditioning: Any = conditioning) -> Any:
            return teacher.denoiser.guided(x_t, t, conditioning, unconditional, float(guidance_scale))

        costs += step_costs(guided, torch.stack(noise).to(teacher.network.device), candidates, schedule) * len(part)
        if progress:
            progress(len(part))
    costs /= len(prompts)
    return {count: _found(costs, candidates, count) for count in counts}


def _found(costs: Tensor, candidates: Tensor, count: int) -> FoundGrid:
    path = cheapest_path(costs, count)
    places = {t: place for place, t in enumerate(candidates.tolist())}
    usual = trailing(count, int(candidates[0]) + 1).tolist()
    known = all(t in places for t in usual)
    return FoundGrid(
        candidates[path].tolist(),
        _error(costs, path.tolist()),
        _error(costs, [places[t] for t in usual]) if known else None,
    )


def _error(costs: Tensor, path: list[int]) -> float:
    steps = zip(path, [*path[1:], len(costs)], strict=True)
    return float(sum(costs[i, j] for i, j in steps)) ** 0.5


def find_grids(
    model: str, prompts: Sequence[str] | None, counts: Sequence[int], guidance_scale: float, device: str | None = None
) -> dict[int, FoundGrid]:
    """`search_grids` of a folder, hub id or checkpoint.

    Args:
        prompts: all that the model knows where None.

    Raises:
        ValueError: it cannot be opened, needs prompts, knows no guidance, or has too few timesteps.
    """
    if max(counts) > CANDIDATES:
        raise ValueError(f"steps {max(counts)}: expects at most {CANDIDATES}, among which the search chooses")
    teacher = load_teacher(model, device=usable_device(device))
    if prompts is None and (prompts := teacher.own_prompts) is None:
        raise ValueError("--prompt and --prompts: expects one of them")
    if guidance_scale > 1 and not teacher.family.guided:
        raise ValueError(f"guidance_scale {guidance_scale:g}: {model} knows no guidance; expects 1")
    with advancing_bar("following the teacher's trajectories", len(prompts)) as progress:
        return search_grids(teacher, prompts, counts, guidance_scale, progress)
