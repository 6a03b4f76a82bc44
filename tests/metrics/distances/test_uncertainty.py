import numpy as np
import pytest
import torch
from feature_sets import drawn_and_reference

from gendistill.metrics.distances.frechet import WeightedFrechet, frechet_distance
from gendistill.metrics.distances.kernel import kid_of_all, weighted_kid
from gendistill.metrics.distances.uncertainty import (
    Interval,
    affordable_resamples,
    mean_interval,
    sample_size_warning,
    symmetric_bootstrap,
    symmetric_interval,
    symmetric_weights,
)
from gendistill.metrics.distances.vendi import WeightedVendi, vendi_score
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics


def frechet_interval(x, reference, **resampling):
    return symmetric_bootstrap(WeightedFrechet(x, reference), minimum=0.0, **resampling)


def gaussians(dim, shift, scale, seed=0):
    """(root of the covariance, mean, reference, distance of N(mean, root root^T) to the reference)."""
    square = np.random.default_rng(seed).normal(size=(dim, dim)) / np.sqrt(dim) + np.eye(dim)
    reference = GaussianStatistics(np.zeros(dim), square @ square.T, None)
    mean, root = np.full(dim, shift), scale * square
    return root, mean, reference, frechet_distance(GaussianStatistics(mean, root @ root.T, None), reference)


@pytest.mark.parametrize(("count", "dim", "shift", "scale"), [(1000, 8, 0.1, 1.1), (1000, 16, 0.05, 1.05), (300, 32, 0.1, 1.2)])
def test_the_interval_of_the_distance_covers_that_of_infinitely_many_images(count, dim, shift, scale):
    """95 % in about 95 of 100 repeats, where most plain distances lie above: of 300 images of 32 features by 1.6 times."""
    root, mean, reference, truth = gaussians(dim, shift, scale)
    rng = np.random.default_rng(1)
    repeats, covered, above = 200, 0, 0
    for seed in range(repeats):
        x = rng.normal(size=(count, dim)) @ root.T + mean
        covered += truth in frechet_interval(x, reference, resamples=60, seed=seed)
        above += frechet_distance(gaussian_statistics(x), reference) > truth
    assert above / repeats > 0.75
    assert 0.9 <= covered / repeats <= 0.99


def test_the_interval_of_the_distance_is_as_wide_as_the_distance_varies():
    root, mean, reference, _ = gaussians(16, 0.05, 1.05)
    rng = np.random.default_rng(2)
    sets = [rng.normal(size=(500, 16)) @ root.T + mean for _ in range(100)]
    spread = np.std([frechet_distance(gaussian_statistics(x), reference) for x in sets])
    intervals = [frechet_interval(x, reference, resamples=60) for x in sets[:30]]
    assert np.mean([i.high - i.low for i in intervals]) == pytest.approx(4 * spread, rel=0.25)


def test_equal_distributions_have_an_interval_that_reaches_down_to_zero():
    rng = np.random.default_rng(3)
    reference = GaussianStatistics(np.zeros(8), np.eye(8), None)
    lows = [frechet_interval(rng.normal(size=(500, 8)), reference, resamples=60, seed=s).low for s in range(40)]
    assert min(lows) == 0
    assert np.mean(np.array(lows) == 0) > 0.9


def test_the_interval_of_a_mean_covers_the_truth():
    rng = np.random.default_rng(4)
    covered = [0.3 in mean_interval(rng.random(400) < 0.3, resamples=300, seed=seed) for seed in range(300)]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_the_interval_of_kid_covers_that_of_infinitely_many_images():
    """x . y has the mean |mu|^2 under N(mu, I); the large-sample value is that of 20,000 images."""
    rng = np.random.default_rng(7)
    y = rng.normal(size=(200, 6))
    truth = float(np.mean([kid_of_all(rng.normal(0.3, 1, (1000, 6)), y) for _ in range(40)]))
    covered = [
        truth in symmetric_bootstrap(weighted_kid(rng.normal(0.3, 1, (200, 6)), y), resamples=60, seed=s) for s in range(200)
    ]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_the_interval_of_the_vendi_score_covers_that_of_infinitely_many_images():
    rng = np.random.default_rng(8)
    spread = np.linspace(0.2, 1, 6)
    truth = vendi_score(rng.normal(size=(200_000, 6)) * spread)
    covered = [
        truth in symmetric_bootstrap(WeightedVendi(rng.normal(size=(200, 6)) * spread), resamples=60, seed=s)
        for s in range(200)
    ]
    assert 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("count", "dim"), [(60, 10), (12, 30), (30, 30)])
def test_whole_weights_score_as_the_set_with_its_rows_repeated(count, dim):
    """Repeated rows are divided by their number less one, weights by their own freedom."""
    x, y = drawn_and_reference(count, 90, dim)
    weights = np.random.default_rng(9).multinomial(count, np.full(count, 1 / count), size=3).astype(float)
    weights[0] = 1
    reference = gaussian_statistics(y)
    repeated = [gaussian_statistics(x[np.repeat(np.arange(count), w.astype(int))]) for w in weights]
    freedom = [(count - 1) / (count - (w**2).sum() / count) for w in weights]
    expected = [
        frechet_distance(GaussianStatistics(s.mean, s.covariance * f, None), reference)
        for s, f in zip(repeated, freedom, strict=True)
    ]
    np.testing.assert_allclose(WeightedFrechet(x, reference)(weights), expected, rtol=1e-6)
    vendi = [vendi_score(x[np.repeat(np.arange(count), w.astype(int))]) for w in weights]
    np.testing.assert_allclose(WeightedVendi(x)(weights), vendi, rtol=1e-9)
    assert weighted_kid(x, y)(weights)[0] == pytest.approx(kid_of_all(x, y), rel=1e-9)


def test_leaving_images_out_by_weight_is_leaving_them_out():
    x, y = drawn_and_reference()
    weights = np.zeros((1, 120))
    weights[0, 10:90] = 1
    reference = gaussian_statistics(y)
    assert weighted_kid(x, y)(weights)[0] == pytest.approx(kid_of_all(x[10:90], y), rel=1e-9)
    apart = frechet_distance(gaussian_statistics(x[10:90]), reference)
    assert WeightedFrechet(x, reference)(weights)[0] == pytest.approx(apart, rel=1e-9)


def test_symmetric_weights_come_in_opposite_pairs():
    weights = symmetric_weights(6, 20, np.random.default_rng(10))
    assert weights.shape == (21, 6)
    assert (weights[0] == 1).all()
    np.testing.assert_array_equal(weights[1:11] + weights[11:], np.full((10, 6), 2.0))


def test_a_quadratic_score_is_centred_on_the_truth_with_the_spread_of_its_estimate():
    """|mean|^2 of N(mu, I): estimate |mu|^2 + D / N, variance 4 |mu|^2 / N + 2 D / N^2."""
    rng, mu = np.random.default_rng(11), np.full(20, 0.02)
    centres, widths = [], []
    for _ in range(100):
        x = rng.normal(size=(400, 20)) + mu
        weights = symmetric_weights(400, 100, rng)
        means = weights @ x / weights.sum(axis=1, keepdims=True)
        interval = symmetric_interval(np.square(means).sum(axis=1))
        centres.append((interval.low + interval.high) / 2)
        widths.append((interval.high - interval.low) / 2 / 2.01)
    assert np.mean(centres) == pytest.approx(mu @ mu, abs=3 * np.std(centres) / 10)
    assert np.mean(widths) == pytest.approx(np.sqrt(4 * mu @ mu / 400 + 2 * 20 / 400**2), rel=0.15)


def test_the_seed_alone_decides_the_interval():
    x, y = drawn_and_reference()
    reference = gaussian_statistics(y)
    assert frechet_interval(x, reference, seed=1) == frechet_interval(torch.from_numpy(x), reference, seed=1)
    assert frechet_interval(x, reference, seed=1) != frechet_interval(x, reference, seed=2)


def test_resamples_fall_with_the_dimension():
    assert [affordable_resamples(dim) for dim in (1, 256, 512, 2048)] == [200, 200, 100, 30]


def test_samples_too_small_for_the_dimension_are_warned_of_in_one_sentence():
    assert "singular" in sample_size_warning(2048, 2048)
    assert "compare only scores of 5000 images" in sample_size_warning(5000, 2048)
    assert sample_size_warning(20480, 2048) is None
    assert all(sample_size_warning(count, 2048).count(".") == 1 for count in (100, 5000))


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"values: got shape \(1,\)"):
        mean_interval(np.zeros(1))
    with pytest.raises(ValueError, match="got 5 per image, expects 4"):
        frechet_interval(np.zeros((9, 5)), GaussianStatistics(np.zeros(4), np.eye(4), None))
    with pytest.raises(ValueError, match="resamples: got 3"):
        symmetric_bootstrap(WeightedVendi(np.eye(5)), resamples=3)
    assert 1.0 in Interval(0.5, 1.5, 0.95)
