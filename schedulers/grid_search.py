"""The N-step DDIM grid that follows one teacher's trajectories best, found by dynamic programming: no training.

The teacher is run once through a fine grid of K candidate times, as a sampler would. A step that skips candidates, from
x_i at t_i straight to t_j, is then a sum of what is known already, and so is its error against the trajectory's own x_j. The
cheapest path of N such steps from the first candidate to the clean end is the grid (as Watson et al. 2021, "Learning to
efficiently sample from diffusion probabilistic models", find theirs on the terms of the ELBO).
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
    """How far every single DDIM step strays from the teacher's trajectory: (K, K + 1) float64, on the CPU.

    Entry (i, j) is the mean square of (x_j - step(x_i, t_i -> t_j)) / alpha_j over samples and their elements; j = K is the
    clean end. It is inf where j <= i, and 0 for the steps of the trajectory itself.

    Errors are those of x / alpha, so that they compare over times: DDIM is Euler's method for x / alpha (Song et al. 2021,
    eq. 14), in which an error that the teacher does not react to reaches the clean end at its own size. Measured on
    assets/tiny-sd it arrives at 0.8 to 1.3 times that size from t = 599 down, and at 0.2 times from 999. N times the sum
    along a path of N steps bounds the square of what errors of that size add up to (Cauchy-Schwarz).

    The costs of several batches of one size, each under its own conditions, are their mean. Memory is that of 5 K times
    `noise` and of K^2 numbers, beside the teacher's.

    Args:
        teacher: (x_t (B, ...), t (B,)) -> x_0 and eps; guided or not. Called K times.
        noise: (B, ...), x at the first candidate, as the sampler samples it.
        candidates: (K,), falling, int64 or float; the path starts at the first of them.
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
        strayed = (alpha * estimate.x_0 + sigma * estimate.eps - x[i + 1 :]) / alpha
        costs[i, i + 1 :] = strayed.double().square().flatten(1).mean(1).cpu()
    return costs


def cheapest_path(costs: Tensor, num_steps: int) -> Tensor:
    """The path of exactly `num_steps` steps from the first of K times to the clean end that costs least.

    Args:
        costs: (K, K + 1), of the step from i to j; inf where there is none. The last column is the clean end.
        num_steps: in [1, K].

    Returns:
        (num_steps,) int64, rising: the places among the K times that are left by a step, 0 the first of them.

    Raises:
        ValueError: there are less times than steps.
    """
    count = len(costs)
    if not 1 <= num_steps <= count:
        raise ValueError(f"{num_steps} steps: expects 1 to {count}, the number of candidate times")
    cheapest, arrivals = costs[0], []  # (K + 1,): of all paths of so many steps that end there
    for _ in range(num_steps - 1):
        cheapest, before = (cheapest[:count, None] + costs).min(0)
        arrivals.append(before)
    place, path = torch.tensor(count), []
    for before in reversed(arrivals):
        place = before[place]
        path.append(place)
    return torch.stack([torch.tensor(0), *reversed(path)])
