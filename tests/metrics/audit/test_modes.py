import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch

from gendistill.metrics.audit.modes import cells_of, differing_bins, fit_bins, mode_loss

CENTRES = np.random.default_rng(1).normal(size=(12, 16)) * 2


def mixture(count, seed, modes=range(12)):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(list(modes), count)
    return (CENTRES[chosen] + rng.normal(size=(count, 16))).astype(np.float32), chosen


@pytest.mark.parametrize("bins", [12, 30])
def test_a_dropped_mode_is_found_and_shown(bins):
    reference, of = mixture(1500, 1)
    teacher, student = mixture(1000, 2), mixture(1000, 3, modes=[m for m in range(12) if m != 5])
    result = mode_loss(reference, teacher[0], student[0], bins=bins)
    assert result.lost
    for found in result.bins[: len(result.lost)]:
        assert found.number in result.lost
        assert {of[n] for n in found.examples} == {5}
        assert {teacher[1][n] for n in found.teacher_examples} == {5}
        assert found.student < 0.1 * found.teacher
    assert result.student_divergence > 3 * result.teacher_divergence
    assert "has too few images in" in result.describe()
    json.dumps(asdict(result), allow_nan=False)


def test_nothing_is_lost_where_nothing_was_dropped():
    lost = 0
    for repeat in range(10):
        reference, teacher, student = (mixture(600, 10 * repeat + i)[0] for i in range(3))
        lost += bool(mode_loss(reference, teacher, student, bins=20, seed=repeat).lost)
    assert lost <= 2  # expected: at most 1 in 20


def test_a_bin_that_a_student_leaves_rarely_is_found_by_the_pairs():
    reference, _ = mixture(1500, 4)
    teacher, of = mixture(1000, 5)
    student, leaving = teacher.copy(), np.flatnonzero(of == 5)[:15]
    student[leaving] = mixture(15, 6, modes=[2])[0]
    assert len(mode_loss(reference, teacher, student, bins=12, false_discovery_rate=0.01).lost) == 1


def test_the_shares_of_all_bins_sum_to_one_and_a_student_like_the_teacher_has_its_figures():
    reference, teacher = mixture(500, 7)[0], torch.from_numpy(mixture(300, 8)[0])
    result = mode_loss(reference, teacher, teacher, bins=15)
    for who in ("reference", "teacher", "student"):
        assert sum(getattr(b, who) for b in result.bins) == pytest.approx(1)
    assert result.student_ndb == result.teacher_ndb
    assert result.student_divergence == result.teacher_divergence
    assert result.lost == ()
    assert "lost no mode" in result.describe()


def test_p_values_are_those_of_mcnemars_exact_test():
    reference, teacher, student = mixture(400, 9)[0], mixture(200, 10)[0], mixture(200, 11)[0]
    centres = fit_bins(reference, 10)
    before, after = cells_of(teacher, centres)[0], cells_of(student, centres)[0]
    for b in mode_loss(reference, teacher, student, bins=10).bins:
        left, entered = ((before == b.number) & (after != b.number)).sum(), ((before != b.number) & (after == b.number)).sum()
        expected = scipy.stats.binomtest(int(entered), int(left + entered), alternative="less").pvalue
        assert b.p_value == pytest.approx(expected, rel=1e-9)


def test_chance_makes_one_bin_of_twenty_differ_in_the_z_test():
    rng = np.random.default_rng(12)
    found = [differing_bins(*rng.multinomial(2000, np.full(50, 0.02), size=2)) / 50 for _ in range(200)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.01)
    assert differing_bins(np.array([10, 0]), np.array([0, 10])) == 2
    assert differing_bins(np.array([10, 0]), np.array([7, 0])) == 0


def test_the_extreme_divergence_is_ln_2():
    reference = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 100.0)]).astype(np.float32)
    result = mode_loss(reference[:21], reference[:20], reference[20:], bins=2)
    assert result.teacher_divergence < 0.05
    assert result.student_divergence > 0.5
    assert result.student_divergence <= np.log(2)


def test_bins_depend_on_the_seed_alone_and_every_one_holds_a_reference_image():
    reference = mixture(300, 13)[0]
    centres = fit_bins(reference, 40, seed=3)
    np.testing.assert_array_equal(centres, fit_bins(torch.from_numpy(reference), 40, seed=3))
    assert len(np.unique(cells_of(reference, centres)[0])) == len(centres)


def test_wrong_input_is_named():
    x = mixture(20, 14)[0]
    with pytest.raises(ValueError, match="bins: got 30"):
        mode_loss(x, x, x, bins=30)
    with pytest.raises(ValueError, match="student: got 19 images for 20"):
        mode_loss(x, x, x[:19], bins=4)
    with pytest.raises(ValueError, match="expects \\(M, D\\)"):
        mode_loss(x, x[:, :3], x, bins=4)
