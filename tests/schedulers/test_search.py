"""The search for grids against brute force, and against the grid that needs no search on a teacher known in closed form."""

import itertools
import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from gendistill.schedulers import (
    NoiseSchedule,
    Prediction,
    cheapest_path,
    expand_to,
    step_costs,
    trailing,
)

SCALED_LINEAR = NoiseSchedule.from_scheduler(DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
FLOW = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
CENTRES, STD = torch.tensor([[1.2, 0.0], [-1.2, 0.0], [0.0, 1.2], [0.0, -0.6]], dtype=torch.float64), 0.15


def mixture(schedule, calls=None):
    """A teacher that knows four Gaussians in the plane exactly."""

    def teacher(x_t, t):
        if calls is not None:
            calls.append(len(x_t))
        alpha, sigma = expand_to(schedule.alpha(t), x_t), expand_to(schedule.sigma(t), x_t)
        variance = alpha**2 * STD**2 + sigma**2
        offset = x_t[:, None] - alpha[:, None] * CENTRES  # (B, 4, 2)
        share = torch.softmax(-offset.square().sum(-1) / (2 * variance), dim=1)[..., None]
        x_0 = (share * (CENTRES + (alpha * STD**2 / variance)[:, None] * offset)).sum(1)
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    return teacher


def solve(teacher, x, grid, schedule):
    """DDIM along the grid and to the clean end."""
    for t, s in pairwise([*grid, torch.tensor(schedule.clean)]):
        prediction = teacher(x, t.expand(len(x)))
        x = schedule.add_noise(prediction.x_0, prediction.eps, s)
    return x


def noise(count, generator):
    return torch.randn(count, 2, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("num_steps", range(1, 8))
def test_the_path_is_the_best_of_all_paths(num_steps, generator):
    costs = torch.rand(7, 8, dtype=torch.float64, generator=generator)
    costs[torch.ones(7, 8).tril().bool()] = math.inf

    def cost(path):
        return sum(costs[i, j] for i, j in pairwise([*path, 7]))

    paths = [(0, *inner) for inner in itertools.combinations(range(1, 7), num_steps - 1)]
    found = cheapest_path(costs, num_steps)
    assert tuple(found.tolist()) in paths
    assert cost(found) == pytest.approx(min(cost(path) for path in paths))


@pytest.mark.parametrize("num_steps", [0, 8])
def test_more_steps_than_times_are_refused(num_steps):
    with pytest.raises(ValueError, match=rf"^{num_steps} steps: expects 1 to 7, the number of candidate times$"):
        cheapest_path(torch.zeros(7, 8), num_steps)


@pytest.mark.parametrize(
    ("schedule", "candidates"),
    [(SCALED_LINEAR, trailing(9)), (FLOW, torch.linspace(1000, 100, 9, dtype=torch.float64))],
    ids=["scaled-linear", "flow"],
)
def test_a_cost_is_the_mean_squared_error_of_x_over_alpha_after_one_step(schedule, candidates, generator):
    teacher, x = mixture(schedule), noise(64, generator)
    times, path = [*candidates, torch.tensor(schedule.clean)], [x]
    for t, s in pairwise(times):
        prediction = teacher(path[-1], t.expand(len(x)))
        path.append(schedule.add_noise(prediction.x_0, prediction.eps, s))

    expected = torch.full((9, 10), math.inf, dtype=torch.float64)
    for i, j in itertools.combinations(range(10), 2):
        prediction = teacher(path[i], times[i].expand(len(x)))
        error = (schedule.add_noise(prediction.x_0, prediction.eps, times[j]) - path[j]).square().mean()
        expected[i, j] = error / schedule.alpha(times[j]) ** 2
    costs = step_costs(teacher, x, candidates, schedule)
    torch.testing.assert_close(costs, expected)
    assert (costs.diagonal(1) < 1e-30).all()  # the trajectory's own steps


def test_the_teacher_is_called_once_for_each_candidate(generator):
    calls = []
    step_costs(mixture(SCALED_LINEAR, calls), noise(8, generator), trailing(10), SCALED_LINEAR)
    assert calls == [8] * 10


def test_the_costs_of_batches_are_their_mean(generator):
    teacher, x = mixture(SCALED_LINEAR), noise(16, generator)
    parts = [step_costs(teacher, part, trailing(10), SCALED_LINEAR) for part in x.split(8)]
    torch.testing.assert_close(sum(parts) / 2, step_costs(teacher, x, trailing(10), SCALED_LINEAR))


def test_a_search_starts_where_there_is_no_signal_at_all(generator):
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True))
    grid = trailing(50)[cheapest_path(step_costs(mixture(schedule), noise(16, generator), trailing(50), schedule), 4)]
    assert grid[0] == 999
    assert (grid.diff() < 0).all()


def test_a_search_among_as_many_candidates_as_steps_finds_them_all(generator):
    costs = step_costs(mixture(SCALED_LINEAR), noise(8, generator), trailing(5), SCALED_LINEAR)
    assert torch.equal(cheapest_path(costs, 5), torch.arange(5))


@pytest.mark.parametrize("num_inference_steps", [2, 3, 4, 6, 8])
def test_a_searched_grid_follows_the_teacher_more_closely_than_the_trailing_grid(num_inference_steps, generator):
    teacher, candidates = mixture(SCALED_LINEAR), trailing(100)
    costs = step_costs(teacher, noise(256, generator), candidates, SCALED_LINEAR)
    x = noise(1000, generator)  # not those of the search
    exact = solve(teacher, x, trailing(250), SCALED_LINEAR)

    def error(grid):
        return (solve(teacher, x, grid, SCALED_LINEAR) - exact).square().mean().sqrt().item()

    assert error(candidates[cheapest_path(costs, num_inference_steps)]) < 0.75 * error(trailing(num_inference_steps))
