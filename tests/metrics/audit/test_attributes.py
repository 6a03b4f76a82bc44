import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats

from gendistill.metrics.audit.attributes import adjusted_fractions, attribute_bias, newcombe_interval
from gendistill.metrics.audit.probe import fit_probe

DIM = 5


def images(shares, count, seed, apart=8.0):
    """Features of images whose value is plain to see, in the given shares, and the values' numbers."""
    rng = np.random.default_rng(seed)
    values = rng.choice(len(shares), count, p=shares)
    return rng.normal(size=(count, DIM)) + apart * np.eye(len(shares), DIM)[values], values


def probe_of(apart=8.0, count=600):
    features, values = images([1 / 3] * 3, count, 99, apart)
    return fit_probe(features, [f"v{k}" for k in values], attribute="tone")


def test_a_student_that_favours_a_value_is_found_with_its_shares():
    teacher, a = images([0.5, 0.3, 0.2], 400, 1)
    student, b = images([0.8, 0.15, 0.05], 400, 2)
    result = attribute_bias(probe_of(), teacher, student)
    by_value = {v.value: v for v in result.values}
    for k in range(3):
        assert by_value[f"v{k}"].teacher == pytest.approx((a == k).mean(), abs=0.005)
        assert by_value[f"v{k}"].student == pytest.approx((b == k).mean(), abs=0.005)
        assert {b[n] for n in by_value[f"v{k}"].examples} == {k}
    assert result.values[0].value == "v0"
    assert result.values[0].low > 0
    assert result.p_value < 0.001
    assert result.accuracy > 0.99
    assert result.total_variation == pytest.approx(sum(abs((a == k).mean() - (b == k).mean()) for k in range(3)) / 2, abs=0.01)
    assert "differ significantly from" in result.describe()
    json.dumps(asdict(result), allow_nan=False)


def test_models_of_equal_shares_are_called_different_in_one_of_twenty():
    probe = probe_of()
    p = []
    for repeat in range(200):
        teacher, student = (images([0.5, 0.3, 0.2], 120, 1000 + 2 * repeat + i)[0] for i in range(2))
        p.append(attribute_bias(probe, teacher, student, permutations=299, seed=repeat).p_value)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.045)
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)


def test_pairs_that_changed_are_shown():
    teacher, of = images([0.5, 0.3, 0.2], 300, 3)
    student, moved = teacher.copy(), np.flatnonzero(of == 2)[:12]
    student[moved] = images([1, 0, 0], 12, 4)[0]
    result = attribute_bias(probe_of(), teacher, student)
    assert set(result.changed) <= set(moved.tolist())
    assert len(result.changed) == 8
    assert result.p_value < 0.01


def test_shares_corrected_for_confusion_come_nearer_to_the_truth():
    truth = [0.7, 0.2, 0.1]
    probe = probe_of(apart=1.8, count=4000)
    assert probe.accuracy < 0.85
    result = attribute_bias(probe, images(truth, 4000, 5, 1.8)[0], images(truth, 4000, 6, 1.8)[0], permutations=99)
    for v in result.values:
        expected = truth[int(v.value[1])]
        assert v.teacher_adjusted == pytest.approx(expected, abs=0.05)
        assert v.student_adjusted == pytest.approx(expected, abs=0.05)
    off = [
        sum(abs(getattr(v, name) - truth[int(v.value[1])]) for v in result.values) for name in ("student", "student_adjusted")
    ]
    assert off[1] < off[0] / 2


def test_adjusted_shares_undo_a_known_confusion_and_stay_shares():
    confusion = np.array([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.0, 0.3, 0.7]])
    truth = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(adjusted_fractions(truth @ confusion, confusion), truth, atol=1e-5)
    extreme = adjusted_fractions(np.array([1.0, 0.0, 0.0]), confusion)
    assert extreme.min() >= 0
    assert extreme.sum() == pytest.approx(1)


def test_wilson_and_newcombe_intervals_are_those_of_the_paper():
    # Newcombe 1998, table II, example (a), method 10: 56/70 - 48/80 lies in 0.0524 to 0.3339.
    intervals = [tuple(scipy.stats.binomtest(k, n).proportion_ci(method="wilson")) for k, n in ((48, 80), (56, 70))]
    assert newcombe_interval(48 / 80, intervals[0], 56 / 70, intervals[1]) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_wrong_input_is_named():
    probe, x = probe_of(), np.zeros((3, DIM))
    with pytest.raises(ValueError, match="student: got features \\(3, 2\\), expects \\(N, 5\\)"):
        attribute_bias(probe, x, x[:, :2])
    with pytest.raises(ValueError, match="student: got 2 images for 3"):
        attribute_bias(probe, x, x[:2])
