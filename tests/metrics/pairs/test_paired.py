import numpy as np
import pytest
from feature_sets import drawn_and_reference

from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.distances.uncertainty import Interval
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.metrics.pairs.paired import PairedTest, paired_test, paired_test_frechet


def alike(rng, count, dim):
    """Two models that sample like images from the same prompts: a part in common and one of its own."""
    common = rng.normal(size=(count, dim))
    return common + 0.5 * rng.normal(size=(count, dim)), common + 0.5 * rng.normal(size=(count, dim))


def share_below(p_values, level=0.05):
    return np.mean(np.array(p_values) <= level)


def test_models_that_are_alike_differ_in_5_of_100_tests_of_a_mean():
    rng = np.random.default_rng(0)
    tests = [paired_test(*(x[:, 0] for x in alike(rng, 60, 1)), resamples=199, seed=seed) for seed in range(300)]
    assert 0.02 <= share_below([t.p_value for t in tests]) <= 0.09
    assert 0.9 <= np.mean([0 in t.interval for t in tests]) <= 0.99


@pytest.mark.parametrize("resamples", [99, 120])
def test_models_that_are_alike_differ_in_5_of_100_tests_of_the_frechet_distance(resamples):
    """By a normal below 100 resamples, by rank from there."""
    rng = np.random.default_rng(1)
    reference = GaussianStatistics(np.full(6, 0.3), np.eye(6), None)
    tests = [paired_test_frechet(*alike(rng, 100, 6), reference, resamples=resamples, seed=seed) for seed in range(250)]
    assert 0.015 <= share_below([t.p_value for t in tests]) <= 0.09
    assert 0.9 <= np.mean([0 in t.interval for t in tests]) <= 0.995


def test_the_interval_of_a_difference_of_distances_covers_that_of_infinitely_many_pairs():
    """A is 0.3 off in every feature and B is 10 % too wide; their noise is shared."""
    rng = np.random.default_rng(3)
    reference = GaussianStatistics(np.zeros(8), np.eye(8), None)
    truth = 8 * 0.3**2 - 8 * 0.1**2
    covered = 0
    for seed in range(200):
        x = rng.normal(size=(400, 8))
        test = paired_test_frechet(x + 0.3, 1.1 * x, reference, resamples=60, seed=seed)
        covered += truth in test.interval
    assert 0.9 <= covered / 200 <= 0.99


def test_a_real_difference_is_found_and_said_whichever_model_comes_first():
    rng = np.random.default_rng(4)
    a, b = alike(rng, 400, 8)
    b = b + 0.3
    reference = gaussian_statistics(rng.normal(0, np.sqrt(1.25), (500, 8)))
    test = paired_test_frechet(a, b, reference)
    distances = [frechet_distance(gaussian_statistics(x), reference) for x in (a, b)]
    assert test.difference == pytest.approx(distances[0] - distances[1], rel=1e-6)
    assert test.p_value <= 1 / 200
    assert test.interval.high < 0
    assert test.describe("teacher", "student").startswith("teacher is better than student by 0.")
    assert paired_test_frechet(b, a, reference).describe().startswith("B is better than A by 0.")


def test_pairs_find_what_two_sets_apart_would_miss():
    rng = np.random.default_rng(5)
    a = rng.normal(25, 5, 200)
    b = a - 0.2 + rng.normal(0, 0.5, 200)
    assert paired_test(a, b).p_value < 0.001
    assert paired_test(a, rng.permutation(b)).p_value > 0.05


def test_the_p_value_equals_that_of_all_sign_patterns():
    """6 differences of one sign: 2 of 64 patterns are as large."""
    test = paired_test(np.array([1.0, 2, 3, 4, 5, 6]), np.zeros(6), resamples=20_000)
    assert test.p_value == pytest.approx(2 / 64, abs=4 * np.sqrt(2 / 64 / 20_000))
    assert test.difference == 3.5


def test_a_model_does_not_differ_from_itself():
    x, y = drawn_and_reference()
    reference = gaussian_statistics(y)
    for test in (paired_test(x[:, 0], x[:, 0]), paired_test_frechet(x, x, reference)):
        assert (test.difference, test.p_value) == (0, 1)
        assert test.describe("one", "two").startswith("one and two do not differ significantly")


def test_the_sentence_tells_the_lead_of_the_winner_with_its_interval():
    clip = PairedTest(0.42, Interval(0.31, 0.55, 0.95), 0.002, 500, higher_is_better=True)
    assert clip.describe() == "A is better than B by 0.42 (95 % interval 0.31 to 0.55, p = 0.002, 500 pairs)."
    fid = PairedTest(0.42, Interval(0.31, 0.55, 0.95), 0.002, 500, higher_is_better=False)
    assert fid.describe() == "B is better than A by 0.42 (95 % interval 0.31 to 0.55, p = 0.002, 500 pairs)."
    lower = PairedTest(-0.42, Interval(-0.55, -0.31, 0.95), 0.002, 500, higher_is_better=True)
    assert lower.describe() == fid.describe()


def test_sets_that_are_no_pairs_are_named():
    x, y = drawn_and_reference()
    with pytest.raises(ValueError, match="b: got 150 images for 120 of a"):
        paired_test_frechet(x, y, gaussian_statistics(y))
    with pytest.raises(ValueError, match="b: got 3 scores for 4 of a"):
        paired_test(np.zeros(4), np.zeros(3))
