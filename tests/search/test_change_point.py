"""The size at which quality breaks, on curves whose break is known."""

import numpy as np
import pytest

from gendistill.search.change_point import SizedDistance, change_point

SIZES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25)


def students(break_at, below, noise=0.02, sizes=SIZES, steps=(1, 2, 4), seed=0):
    """Distances that grow by 10 % where the size halves, and by exp(below) more below the break."""
    normal = np.random.default_rng(seed).standard_normal
    for count in steps:
        for size in sizes:
            x = np.log2(size)
            y = -0.1 * x + below * max(0, np.log2(break_at) - x) - 0.3 * np.log2(count) + noise * normal()
            yield SizedDistance(size, count, float(np.exp(y)))


@pytest.mark.parametrize("break_at", [0.65, 0.5, 0.4])
def test_it_finds_the_break_of_a_constructed_curve(break_at):
    found = change_point(list(students(break_at, 1.0, noise=0.001)))
    assert found.is_clear
    assert found.size == pytest.approx(break_at, rel=0.02)
    assert found.low <= found.size <= found.high
    assert found.high - found.low < 0.02
    assert found.above == pytest.approx(np.exp(0.1), rel=0.02)
    assert found.below == pytest.approx(np.exp(1.1), rel=0.02)


@pytest.mark.parametrize("break_at", [0.65, 0.5, 0.4])
def test_the_interval_covers_the_break_in_nearly_all_noisy_curves(break_at):
    """Of 150 curves it covers 94 to 99 %."""
    found = [change_point(list(students(break_at, 1.0, noise=0.1, seed=seed)), seed=seed) for seed in range(20)]
    assert sum(each.low <= break_at <= each.high for each in found) >= 17


def test_a_straight_line_has_no_clear_break():
    found = [change_point(list(students(0.5, 0.0, noise=0.1, seed=seed)), seed=seed) for seed in range(20)]
    assert sum(each.is_clear for each in found) <= 3


def test_few_sizes_have_no_change_point():
    assert change_point(list(students(0.5, 1.0, sizes=(1.0, 0.5, 0.25)))) is None
    assert change_point(list(students(0.5, 1.0, sizes=(1.0, 0.7, 0.5, 0.25), steps=(1,)))) is None
