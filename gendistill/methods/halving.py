"""The steps of progressive distillation (Salimans & Ho 2022): where a student goes in one DDIM step, and its teacher in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.samplers import ddim_step, invert_ddim_step
from gendistill.schedulers import NoiseSchedule, Prediction, trailing

Teacher = Callable[[Tensor, Tensor], Prediction]  # x_t (B, ...), t (B,); its conditions are bound


def halvings(teacher_steps: int, student_steps: int) -> tuple[int, ...]:
    """The step counts of the students of all stages, from a teacher of `teacher_steps` down to `student_steps`.

    64 to 4: (32, 16, 8, 4). Odd counts are halved upwards, so that no step is longer than two of its teacher's, and the last
    stage may halve less: 50 to 4 is (25, 13, 7, 4). Where every count is half of the one before, each teacher is asked at
    the times that it was trained at and at no others; else at times between them.

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
    """The steps of a stage: row k goes from t[k] to s[k] in one step of the student, in two of its teacher by middle[k].

    All (N,), t falling, t > middle > s; int64 where networks take integers. s is the schedule's `clean` in the last row.
    """

    t: Tensor
    middle: Tensor
    s: Tensor


def sampled_times(num_steps: int, schedule: NoiseSchedule, grid: Sequence[int] = ()) -> Tensor:
    """The (N,) times that a sampler of N steps visits, falling, as diffusers' pipelines have them.

    Of `vp` the trailing grid, int64; of `flow` N - i of N parts of the way, float64, where nothing shifts it.

    Args:
        grid: other timesteps to go by. N less are every so manieth of them, N more lie between them, halfway each time.

    Raises:
        ValueError: of `edm`, whose grid (Karras et al. 2022, eq. 5) has no points between its own, nor below its last; or the
            grid's length is not N after halvings or doublings, or two of its times leave none between.
    """
    if grid:
        return _nested(num_steps, grid, schedule)
    if schedule.kind == "vp":
        return trailing(num_steps, schedule.num_train_timesteps)
    if schedule.kind == "flow":
        return torch.arange(num_steps, 0, -1, dtype=torch.float64) * schedule.num_train_timesteps / num_steps
    raise ValueError(f"a noise schedule of kind {schedule.kind} has no grid that can be halved; expects vp or flow")


def _nested(num_steps: int, grid: Sequence[int], schedule: NoiseSchedule) -> Tensor:
    times = torch.tensor(grid)
    while len(times) < num_steps:
        after = torch.cat([times[1:], torch.tensor([int(schedule.clean)])])
        times = torch.stack([times, (times + after).div(2, rounding_mode="floor").clamp(min=0)], 1).flatten()
    if len(times) % num_steps or num_steps > len(times):
        raise ValueError(f"a grid of {len(grid)} timesteps does not nest in one of {num_steps}; expects one that halves to it")
    times = times[:: len(times) // num_steps]
    if (times[:-1] <= times[1:]).any():
        raise ValueError(f"a grid of {len(grid)} timesteps has not room for {num_steps}; expects fewer steps to start from")
    return times


def halving_times(num_steps: int, schedule: NoiseSchedule, *, stochastic: bool = False, grid: Sequence[int] = ()) -> Halving:
    """Where the student of `num_steps` steps and its teacher of twice as many go.

    The student goes from each point of the N-step grid to the next and from the last to `clean`, as the sampler will. Its
    teacher goes through the other points of the 2 N-step grid, of which the student's are every second one (but for a
    rounding by one timestep at a few N, 48 of 1000 the first).

    N need not divide the timesteps, but then diffusers' `DDIMScheduler` does not land on its own next timestep, as
    `DPMSolverMultistepScheduler(solver_order=1, final_sigmas_type="zero")` does at any N.

    With `stochastic`, steps as long as these start at all 2 N points: those that the sampler of Meng et al. 2023, section
    3.3, makes (`StochasticDDIMScheduler`, in 2 N network calls). The very last of them can only be half as long.

    Args:
        grid: as for `sampled_times`.

    Raises:
        ValueError: a student step leaves no timestep for its teacher's second.
    """
    halves = sampled_times(2 * num_steps, schedule, grid)
    clean = torch.tensor([schedule.clean], dtype=torch.float64).to(halves.dtype)
    if stochastic:
        t, s = halves, torch.cat([halves[2:], clean, clean])
        middle = torch.cat([halves[1:], sampled_times(4 * num_steps, schedule, grid)[-1:]])
    else:
        t, middle = sampled_times(num_steps, schedule, grid), halves[1::2]
        s = torch.cat([t[1:], clean])
    between = (t > middle) & (middle > s)
    if not between.all():
        first = int((~between).long().argmax())
        raise ValueError(
            f"{num_steps} student steps: that from timestep {t[first]} to {s[first]} leaves its teacher none between; expects "
            f"fewer steps of {schedule.num_train_timesteps} timesteps"
        )
    return Halving(t, middle, s)


@torch.no_grad()
def halving_target(teacher: Teacher, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, schedule: NoiseSchedule) -> Prediction:
    """What a student must say of x_t (B, ...) at t (B,) to reach in one DDIM step to s what the teacher reaches in two.

    Salimans & Ho 2022, algorithm 2: x_0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), for any
    alpha and sigma; at s = `clean` this is x_s itself. Exact at zero terminal SNR, where the teacher's x_0 must be finite: no
    epsilon teacher's is.
    """
    first = teacher(x_t, t)
    x_middle = ddim_step(first.x_0, first.eps, middle, schedule)
    second = teacher(x_middle, middle)
    x_s = ddim_step(second.x_0, second.eps, s, schedule)
    return Prediction(*invert_ddim_step(x_t, t, x_s, s, schedule))
