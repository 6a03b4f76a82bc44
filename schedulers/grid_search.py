"""Search of the N-step DDIM grid with the smallest error against a teacher's trajectories, by dynamic programming.

The teacher samples once along a fine grid of K candidate times. A step from x_i at t_i to t_j that skips candidates, and
its error against the trajectory's x_j, then follow from the stored predictions. The grid is the cheapest path of N such steps
from the first candidate to the clean end (Watson et al. 2021, "Learning to efficiently sample from diffusion probabilistic
models", use the same search with the terms of the ELBO as costs).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gendistill.schedulers.noise import NoiseSchedule, expand_to
from gendistill.schedulers.prediction import Prediction

Teacher = Callable[[Tensor, Tensor], Prediction]


@torch.no_grad()
def step_costs(teacher: Teacher, noise: Tensor, candidates: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Error of every single DDIM step against the teacher's trajectory: (K, K + 1) float64, on the CPU.

    Entry (i, j) is the mean square of (x_j - step(x_i, t_i -> t_j)) / alpha_j over samples and their elements; j = K is the
    clean end. It is inf for j <= i, and 0 for the steps of the trajectory itself.

    Errors are measured in x / alpha, to be comparable between times: DDIM is Euler's method for x / alpha (Song et al. 2021,
    eq. 14), so that an error that does not change the teacher's prediction reaches the clean end with the same size. On
    assets/tiny-sd the measured size at the clean end is 0.8 to 1.3 times the original from t = 599 down, and 0.2 times from
    999. N times the sum of the costs along a path of N steps bounds the square of the sum of their errors (Cauchy-Schwarz).

    For several batches of one size, each with its own conditions, take the mean of their costs. Memory use is 5 K times
    `noise` and K^2 numbers, in addition to the teacher's.

    Args:
        teacher: (x_t (B, ...), t (B,)) -> x_0 and eps, with or without guidance; called K times.
        noise: (B, ...), the sampler's initial x, at the first candidate.
        candidates: (K,), descending, int64 or float; the path starts at the first.
    """
    times = torch.cat([candidates.double(), torch.tensor([schedule.clean])])  # (K + 1,)
    path, estimates = [noise], []
    for t, s in zip(candidates.to(noise.device), times[1:], strict=True):
        estimate = teacher(path[-1], t.expand(len(noise)))
        path.append(schedule.add_noise(estimate.x_0, estimate.eps, s))
        estimates.append(estimate)
    x = torch.stack(path)  # (K + 1, B, ...)
    costs = torch.full((len(candidates), len(times)), math.inf, dtype=torch.float64)
    for i, estimate in enumerate(estimates):
        alpha, sigma = (expand_to(scale(times[i + 1 :]), x[i + 1 :]) for scale in (schedule.alpha, schedule.sigma))
        error = (alpha * estimate.x_0 + sigma * estimate.eps - x[i + 1 :]) / alpha
        costs[i, i + 1 :] = error.double().square().flatten(1).mean(1).cpu()
    return costs


def cheapest_path(costs: Tensor, num_steps: int) -> Tensor:
    """The cheapest path of exactly `num_steps` steps from the first of K times to the clean end.

    Args:
        costs: (K, K + 1), cost of the step from i to j, inf if it does not exist; the last column is the clean end.
        num_steps: number of steps, in [1, K].

    Returns:
        (num_steps,) int64, ascending: the indices of the path's times among the K times, starting with 0.

    Raises:
        ValueError: there are fewer times than steps.
    """
    count = len(costs)
    if not 1 <= num_steps <= count:
        raise ValueError(f"{num_steps} steps: expects 1 to {count}, the number of candidate times")
    cheapest, predecessors = costs[0], []  # (K + 1,): cost of the cheapest path of so many steps to each time
    for _ in range(num_steps - 1):
        cheapest, predecessor = (cheapest[:count, None] + costs).min(0)
        predecessors.append(predecessor)
    index, path = torch.tensor(count), []
    for predecessor in reversed(predecessors):
        index = predecessor[index]
        path.append(index)
    return torch.stack([torch.tensor(0), *reversed(path)])
