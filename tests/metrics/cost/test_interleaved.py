"""Models timed side by side."""

import time

import pytest

from gendistill.metrics.cost.interleaved import SideBySide, time_side_by_side


def test_a_speed_up_is_the_ratio_of_medians_and_its_reach_the_quartiles_of_the_rounds():
    found = SideBySide(4, {"slow": [4.0, 8.0, 40.0], "fast": [1.0, 4.0, 8.0]})
    assert found.seconds_per_image("slow") == 2.0
    assert found.speed_up("fast", "slow") == 2.0
    assert found.speed_up_between("fast", "slow") == pytest.approx((3.0, 4.5))  # of 2, 4 and 5


def test_models_take_turns_and_the_order_is_turned_round_by_round():
    called = []
    draws = {name: (lambda count, name=name: called.append((name, count))) for name in "ab"}
    found = time_side_by_side(draws, 3, warmup=1, rounds=2)
    assert called == [(name, 3) for name in "ab" + "ab" + "ba"]
    assert {name: len(rounds) for name, rounds in found.rounds.items()} == {"a": 2, "b": 2}


def test_rounds_go_on_until_they_took_long_enough():
    found = time_side_by_side({"a": lambda _: time.sleep(0.02)}, 1, rounds=1, min_seconds=0.1)
    assert 3 <= len(found.rounds["a"]) <= 5


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="expects 1 or more of each"):
        time_side_by_side({"a": print}, 0)
    with pytest.raises(ValueError, match="expects 1 or more of each"):
        time_side_by_side({}, 1)
