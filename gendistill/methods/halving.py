"""The time steps of progressive distillation (Salimans & Ho 2022): one DDIM step of the student, two of its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.samplers import ddim_step, invert_ddim_step
from gendistill.schedulers import NoiseSchedule, Prediction, trailing

Teacher = Callable[[Tensor, Tensor], Prediction]  # of x_t (B, ...), t (B,), at fixed conditions


def halvings(teacher_steps: int, student_steps: int) -> tuple[int, ...]:
    """The step counts of the students of all stages, from a teacher of `teacher_steps` down to `student_steps`.

    64 to 4: (32, 16, 8, 4). Half of an odd count is rounded up, so that no step is longer than two steps of the teacher, and
    the
    last stage may halve less: 50 to 4 is (25, 13, 7, 4). Where every count is half of the one before, each teacher is evaluated
    only at the timesteps of its training; else also at timesteps between them.

    Raises:
        ValueError: not 1 <= student_steps < teacher_steps.
    """
    if not 1 <= student_steps < teacher_steps:
        raise ValueError(f"{student_steps} student steps: expects 1 to {teacher_steps - 1}, less than the teacher's")
    counts = []
    while teacher_steps > student_steps:
        teacher_steps = max((teacher_steps + 1) // 2, student_steps)
        counts.append(teacher_steps)
    return tuple(counts)


@dataclass(frozen=True)
class Halving:
    """The steps of a stage: from t[k] to s[k] in one step of the student, and in two steps of its teacher via middle[k].

    All (N,) int64, t descending, t > middle > s. The last s is the schedule's `clean`.
    """

    t: Tensor
    middle: Tensor
    s: Tensor


def sampled_times(num_steps: int, schedule: NoiseSchedule, grid: Sequence[int] = ()) -> Tensor:
    """The times (N,) int64 of a sampler of N steps, descending: the trailing grid, as in diffusers' pipelines.

    Args:
        grid: other timesteps of the sampler. For fewer steps every k-th of them is used; for more steps the grid is refined by
            midpoints.

    Raises:
        ValueError: the grid's length is not N after halvings or doublings, or has no timestep left between two of its own.
    """
    return _nested(num_steps, grid, schedule) if grid else trailing(num_steps, schedule.num_train_timesteps)


def _nested(num_steps: int, grid: Sequence[int], schedule: NoiseSchedule) -> Tensor:
    times = torch.tensor(grid)
    while len(times) < num_steps:
        following = torch.cat([times[1:], torch.tensor([schedule.clean])])
        times = torch.stack([times, (times + following).div(2, rounding_mode="floor").clamp(min=0)], 1).flatten()
    if len(times) % num_steps or num_steps > len(times):
        raise ValueError(f"a grid of {len(grid)} timesteps does not nest in one of {num_steps}; expects one that halves to it")
    times = times[:: len(times) // num_steps]
    if (times[:-1] <= times[1:]).any():
        raise ValueError(f"a grid of {len(grid)} timesteps has no room for {num_steps}; expects fewer steps to start from")
    return times


def halving_times(num_steps: int, schedule: NoiseSchedule, *, stochastic: bool = False, grid: Sequence[int] = ()) -> Halving:
    """The steps of a student of `num_steps` steps, and of its teacher of twice as many.

    The student steps from each point of the N-step grid to the next, and from the last to `clean`, as the sampler does. The
    middle points of the teacher are the other points of the 2 N-step grid, whose every second point is one of the student
    (except for a rounding by one timestep at a few N, the first of them 48 of 1000).

    N need not divide the number of timesteps, but then diffusers' `DDIMScheduler` does not step to its own next timestep, which
    `DPMSolverMultistepScheduler(solver_order=1, final_sigmas_type="zero")` does for any N.

    With `stochastic`, steps of the same length start at all 2 N points: the steps of the sampler of Meng et al. 2023, section
    3.3 (`StochasticDDIMScheduler`, in 2 N network calls). The last of them is only half as long.

    Args:
        grid: as for `sampled_times`.

    Raises:
        ValueError: a student step leaves no timestep for its teacher's second.
    """
    halves = sampled_times(2 * num_steps, schedule, grid)
    clean = torch.tensor([schedule.clean])
    if stochastic:
        t, s = halves, torch.cat([halves[2:], clean, clean])
        middle = torch.cat([halves[1:], sampled_times(4 * num_steps, schedule, grid)[-1:]])
    else:
        t, middle = sampled_times(num_steps, schedule, grid), halves[1::2]
        s = torch.cat([t[1:], clean])
    valid = (t > middle) & (middle > s)
    if not valid.all():
        first = int((~valid).long().argmax())
        raise ValueError(
            f"{num_steps} student steps: between timesteps {t[first]} and {s[first]} there is none for the teacher's second "
            f"step; expects fewer steps of {schedule.num_train_timesteps} timesteps"
        )
    return Halving(t, middle, s)


@torch.no_grad()
def halving_target(teacher: Teacher, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, schedule: NoiseSchedule) -> Prediction:
    """The prediction at x_t (B, ...), t (B,) whose single DDIM step to s reaches the x_s of the teacher's two steps.

    Salimans & Ho 2022, algorithm 2: x_0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), for any
    alpha and sigma; at s = `clean` this is x_s itself. It is exact at zero terminal SNR if the teacher's x_0 is finite there,
    which that of an epsilon teacher is not.
    """
    first = teacher(x_t, t)
    x_middle = ddim_step(first.x_0, first.eps, middle, schedule)
    second = teacher(x_middle, middle)
    x_s = ddim_step(second.x_0, second.eps, s, schedule)
    return Prediction(*invert_ddim_step(x_t, t, x_s, s, schedule))
