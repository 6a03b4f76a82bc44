"""`gendistill grid`: timesteps at which a few DDIM steps of a teacher best approximate its many, found without training."""

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

CANDIDATES = 40  # contains the trailing grids of 1, 2, 4, 5, 8, 10 and 20 steps
SEED = 30_000_001  # seed of the trajectories; differs from the seeds of training and evaluation


@dataclass(frozen=True)
class FoundGrid:
    """A grid and its error, the root of the summed `step_costs`, with the error of the trailing grid.

    `trailing_error` is None if the timesteps of the trailing grid are not among the candidates.
    """

    timesteps: list[int]
    error: float
    trailing_error: float | None


def searchable(pipeline: Any) -> bool:
    """Whether the pipeline can be a teacher, so that its trajectories can be computed, and can be sampled on any grid."""
    try:
        teacher = teacher_of(pipeline, "")
    except ValueError:
        return False
    return teacher.denoiser.schedule.kind == "vp"


@torch.no_grad()
def search_grids(
    teacher: Teacher,
    prompts: Sequence[str],
    counts: Sequence[int],
    guidance_scale: float,
    progress: Callable[[int], object] | None = None,
) -> dict[int, FoundGrid]:
    """The best grid of each step count among `CANDIDATES` trailing timesteps, along one trajectory per prompt.

    Args:
        prompts: representative prompts; a few dozen suffice.
        guidance_scale: guidance scale of the trajectories; 1 is without guidance.

    Raises:
        ValueError: a step count is not in [1, CANDIDATES].
    """
    schedule = teacher.denoiser.schedule
    candidates = trailing(CANDIDATES, schedule.num_train_timesteps)
    at_once, unconditional = images_at_once(max(teacher.size)), teacher.unconditional()
    costs = torch.zeros(CANDIDATES, CANDIDATES + 1, dtype=torch.float64)
    shape = teacher.codec.latent_shape(teacher.size)
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
    return {count: _best_grid(costs, candidates, count) for count in counts}


def _best_grid(costs: Tensor, candidates: Tensor, count: int) -> FoundGrid:
    path = cheapest_path(costs, count)
    index_of = {t: index for index, t in enumerate(candidates.tolist())}
    trailing_grid = trailing(count, int(candidates[0]) + 1).tolist()
    is_comparable = all(t in index_of for t in trailing_grid)
    return FoundGrid(
        candidates[path].tolist(),
        _error(costs, path.tolist()),
        _error(costs, [index_of[t] for t in trailing_grid]) if is_comparable else None,
    )


def _error(costs: Tensor, path: list[int]) -> float:
    steps = zip(path, [*path[1:], len(costs)], strict=True)
    return float(sum(costs[i, j] for i, j in steps)) ** 0.5


def find_grids(
    model: str, prompts: Sequence[str] | None, counts: Sequence[int], guidance_scale: float, device: str | None = None
) -> dict[int, FoundGrid]:
    """`search_grids` for a folder, hub id or checkpoint.

    Args:
        prompts: None for all classes of a class-conditional model, or the empty prompt of an unconditional model.

    Raises:
        ValueError: the model cannot be opened, needs prompts, or has no guidance; or a step count is too large.
    """
    if max(counts) > CANDIDATES:
        raise ValueError(f"steps {max(counts)}: expects at most {CANDIDATES}, the number of candidate timesteps")
    teacher = load_teacher(model, device=usable_device(device))
    if prompts is None and (prompts := teacher.own_prompts) is None:
        raise ValueError("--prompt and --prompts: expects one of them")
    if guidance_scale > 1 and not teacher.family.has_guidance:
        raise ValueError(f"guidance_scale {guidance_scale:g}: {model} has no guidance; expects 1")
    if (kind := teacher.denoiser.schedule.kind) != "vp":
        raise ValueError(f"model {model}: no scheduler of diffusers takes a grid of its own for its noise schedule ({kind})")
    with advancing_bar("following the teacher's trajectories", len(prompts)) as progress:
        return search_grids(teacher, prompts, counts, guidance_scale, progress)
