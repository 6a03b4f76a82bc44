import time

import pytest

from gendistill.metrics.efficiency import seconds_per_picture


def test_time_is_counted_a_picture_and_warm_up_is_left_out():
    calls = []

    def generate(pictures):
        calls.append(pictures)
        time.sleep(0.5 if len(calls) == 1 else 0.02)

    timing = seconds_per_picture(generate, pictures=4, warmup=1, repeats=3)
    assert calls == [4] * 4
    assert 0.005 <= timing.median <= timing.p90 < 0.1


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        seconds_per_picture(lambda n: None, pictures=0)
