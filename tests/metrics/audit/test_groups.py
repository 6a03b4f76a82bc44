import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
from prdc import compute_prdc

from gendistill.metrics.audit.groups import coverage_by_group, covering, scores_by_group, sign_flip_p

CENTRES = np.random.default_rng(0).normal(size=(10, 8)) * 3


def mixture(count, seed, groups=range(10)):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(list(groups), count)
    return (CENTRES[chosen] + rng.normal(size=(count, 8))).astype(np.float32), chosen


def test_the_share_of_covered_rows_equals_the_coverage_of_prdc():
    real, fake = mixture(300, 1)[0], mixture(120, 2)[0]
    hits = covering(real, fake, k=5)
    assert hits.shape == (300, 120)
    assert (hits.sum(axis=1) > 0).mean() == pytest.approx(compute_prdc(real, fake, nearest_k=5)["coverage"], abs=1e-12)


def test_a_group_that_the_student_no_longer_samples_is_found_and_its_images_shown():
    real, of = mixture(600, 5)
    teacher, student = mixture(300, 6)[0], mixture(300, 7, groups=[g for g in range(10) if g != 4])[0]
    by_teacher, by_student = covering(real, teacher), covering(real, student)
    result = coverage_by_group(by_teacher, by_student, [f"mode {g}" for g in of])
    assert result.worse[0] == "mode 4"
    assert len(result.worse) == 1
    gone = result.groups[0]
    assert gone.student < 0.2 < 0.9 < gone.teacher
    assert gone.high < 0
    assert {of[number] for number in gone.worst} == {4}
    assert all(by_teacher[[n]].nnz and not by_student[[n]].nnz for n in gone.worst)
    assert "mode 4" in result.describe()
    json.dumps(asdict(result), allow_nan=False)


def test_models_that_sample_alike_seldom_have_a_group_called_worse():
    p_values, found = [], 0
    for repeat in range(25):
        real, of = mixture(300, 100 + repeat)
        hits = [covering(real, mixture(150, seed + repeat)[0]) for seed in (200, 300)]
        result = coverage_by_group(*hits, [str(g) for g in of], permutations=399)
        p_values += [g.p_value for g in result.groups]
        found += bool(result.worse)
    assert found <= 4  # expected: 1 in 40 repeats
    assert np.mean(np.array(p_values) <= 0.05) < 0.1


def test_the_interval_of_coverage_holds_the_true_difference_nine_times_in_ten_or_more():
    real, of = mixture(200, 20)
    outcomes = []
    for repeat in range(60):
        teacher, student = mixture(100, 1000 + repeat)[0], mixture(100, 2000 + repeat, groups=[0, 0, *range(8)])[0]
        result = coverage_by_group(covering(real, teacher), covering(real, student), ["all"] * len(of), permutations=99)
        outcomes.append((result.overall.difference, result.overall.low, result.overall.high))
    difference, low, high = np.array(outcomes).T
    assert difference.mean() < -0.1
    assert np.mean((low <= difference.mean()) & (difference.mean() <= high)) > 0.85


def test_a_student_that_samples_the_teachers_images_differs_nowhere():
    real, of = mixture(100, 8)
    hits = covering(real, mixture(60, 9)[0])
    result = coverage_by_group(hits, hits.toarray(), [str(g) for g in of], permutations=99)
    assert result.worse == ()
    assert all(g.difference == 0 and g.p_value == 1 and g.worst == () for g in (*result.groups, result.overall))
    assert "None of" in result.describe()


def test_scores_that_fell_in_one_group_of_fifty_are_found_with_the_worst_images():
    rng = np.random.default_rng(10)
    groups = np.repeat([f"group {g}" for g in range(50)], 20)
    teacher = rng.normal(60, 10, 1000)
    student = teacher + rng.normal(0, 3, 1000)
    student[groups == "group 7"] -= 6
    student[145] = teacher[145] - 40
    result = scores_by_group(teacher, student, groups)
    assert result.worse == ("group 7",)
    assert result.groups[0].worst[0] == 145
    assert all(140 <= number < 160 for number in result.groups[0].worst)
    assert result.overall.count == 1000
    assert result.overall.difference == pytest.approx((student - teacher).mean())
    json.dumps(asdict(result), allow_nan=False)


def test_the_correction_finds_nothing_where_plain_p_values_would():
    rng = np.random.default_rng(11)
    plain, corrected = 0, 0
    for _ in range(10):
        teacher = rng.normal(size=400)
        groups = np.repeat(np.arange(40).astype(str), 10)
        result = scores_by_group(teacher, teacher + rng.normal(size=400), groups, permutations=999)
        plain += sum(g.p_value <= 0.05 for g in result.groups)
        corrected += len(result.worse)
    assert 8 <= plain <= 35  # 400 tests of nothing: 20 expected
    assert corrected <= 1


def test_intervals_and_corrected_p_values_are_those_of_scipy():
    rng = np.random.default_rng(12)
    teacher, student = rng.normal(size=60), rng.normal(size=60)
    result = scores_by_group(teacher, student, ["a", "b", "c"] * 20)
    for g in result.groups:
        rows = slice("abc".index(g.group), None, 3)
        expected = scipy.stats.ttest_rel(student[rows], teacher[rows])
        assert (g.low, g.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert g.p_value == pytest.approx(expected.pvalue, abs=0.05)
    p, q = [[getattr(g, name) for g in result.groups] for name in ("p_value", "q_value")]
    assert q == pytest.approx(scipy.stats.false_discovery_control(p))


def test_a_sign_flip_counts_all_flips_of_few_differences():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)
    assert sign_flip_p(np.zeros(5)) == 1


def test_groups_too_small_to_tell_are_listed_last_and_untested():
    teacher = np.arange(11.0)
    student = teacher - np.array([5.0, *np.ones(10)])
    result = scores_by_group(teacher, student, ["tiny"] + ["large"] * 10)
    assert [g.group for g in result.groups] == ["large", "tiny"]
    assert result.groups[1].p_value is None
    assert result.groups[1].low is None
    assert result.worse == ("large",)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="expects \\(M, N\\) twice"):
        coverage_by_group(np.ones(4, bool), np.ones(4, bool), ["a"] * 4)
    with pytest.raises(ValueError, match="3 names for 4 images"):
        coverage_by_group(np.ones((4, 2), bool), np.ones((4, 2), bool), ["a"] * 3)
    with pytest.raises(ValueError, match="more than k = 5"):
        covering(np.ones((5, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="\\(5, 2\\) and \\(3, 4\\)"):
        covering(np.ones((5, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        scores_by_group(np.array([1.0, np.nan]), np.ones(2), ["a", "a"])
    with pytest.raises(ValueError, match="\\(2,\\) and \\(3,\\)"):
        scores_by_group(np.ones(2), np.ones(3), ["a", "a"])
