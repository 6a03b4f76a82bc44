import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.neighbors import NearestNeighbors

from gendistill.metrics.audit.memorisation import copying_statistic, memorisation, nearest
from gendistill.metrics.features.feature_extractor import extract


def fresh(count, seed, dim=8):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_copies_are_found_and_named_with_the_image_that_they_copy():
    training, held_out = fresh(800, 1), fresh(300, 2)
    student = fresh(300, 3)
    student[:60] = training[100:160] + 1e-3 * fresh(60, 4)
    result = memorisation(training, fresh(300, 5), student, held_out)
    found = {(pair.generated, pair.training) for pair in result.student.pairs}
    assert found <= {(k, 100 + k) for k in range(60)}
    assert all(pair.ratio < 0.05 for pair in result.student.pairs)
    assert result.student.near_fraction > result.teacher.near_fraction + 0.1
    assert result.p_value < 1e-3
    assert result.student.c_t < -3
    assert "is significantly nearer" in result.describe()
    json.dumps(asdict(result), allow_nan=False)


def test_fresh_images_of_the_same_distribution_are_no_copies():
    small, scores = 0, []
    for repeat in range(20):
        training, teacher, student, held_out = (fresh(n, 100 + 4 * repeat + i) for i, n in enumerate((500, 200, 200, 200)))
        result = memorisation(training, teacher, student, held_out)
        scores.append(result.student.c_t)
        small += result.p_value < 0.05
        assert result.student.low - 0.1 < result.held_out_near_fraction < result.student.high + 0.1
    assert np.std(scores) == pytest.approx(1, abs=0.45)  # the statistic is standard normal where nothing is copied
    assert max(map(abs, scores)) < 4
    assert small <= 4


def test_distances_and_numbers_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr("gendistill.metrics.audit.memorisation.ELEMENTS_AT_ONCE", 700)
    a, b = fresh(50, 6), fresh(90, 7)
    expected = NearestNeighbors(n_neighbors=2).fit(b)
    distance, number = nearest(a, torch.from_numpy(b))
    np.testing.assert_allclose(distance, expected.kneighbors(a)[0][:, 0], rtol=1e-5)
    np.testing.assert_array_equal(number, expected.kneighbors(a)[1][:, 0])
    distance, number = nearest(b, b, skip_self=True)
    np.testing.assert_allclose(distance, expected.kneighbors(b)[0][:, 1], rtol=1e-5)
    np.testing.assert_array_equal(number, expected.kneighbors(b)[1][:, 1])


def test_a_copy_of_a_image_that_training_holds_twice_is_a_copy():
    training = fresh(50, 8) + 1000
    training[1] = training[0]
    result = memorisation(training, fresh(30, 9) + 1000, training[:1])
    assert result.student.near_fraction == 1
    assert result.student.pairs[0].ratio == 0
    assert result.student.c_t is None


def test_the_copying_statistic_is_the_standardised_rank_sum_of_scipy():
    generated, held_out = fresh(60, 10, 1)[:, 0] - 0.5, fresh(40, 11, 1)[:, 0]
    assert copying_statistic(generated, held_out) == pytest.approx(scipy.stats.ranksums(generated, held_out).statistic)
    assert copying_statistic(generated[:5], held_out) is None


def test_a_training_emoji_among_held_out_ones_is_the_most_suspicious(held_out, extractor):
    features = extract(extractor, held_out[0])
    training, generated = features[:400], torch.cat([features[500:560], features[37:38]])
    result = memorisation(training, generated[:-1], generated)
    assert (result.student.pairs[0].generated, result.student.pairs[0].training) == (60, 37)
    assert result.student.pairs[0].distance < 1e-4


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="at least 2"):
        memorisation(fresh(1, 0), fresh(3, 0), fresh(3, 0))
    with pytest.raises(ValueError, match="equal D"):
        memorisation(fresh(5, 0), fresh(3, 0), fresh(3, 0, dim=4))
