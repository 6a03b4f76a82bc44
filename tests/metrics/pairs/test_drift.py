"""Closed forms and invariances of the distances between representations."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from gendistill.metrics.pairs.drift import latent_psnr, linear_cka, mean_cosine, moment_drift, orthogonal_procrustes


def random_features(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)) * np.linspace(0.3, 2, dim)


def random_rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def moved(features, seed=9):
    """The same rotated, scaled and shifted."""
    return 3.7 * features @ random_rotation(features.shape[1], seed) + np.linspace(-5, 5, features.shape[1])


def hsic_as_in_song(k, ell):
    """Song et al. 2012, eq. 5, term by term."""
    k, ell = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell))
    n, one = len(k), np.ones(len(k))
    terms = np.trace(k @ ell) + (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ ell @ one)
    return terms / (n * (n - 3))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("count", "dim"), [(40, 7), (12, 90)])
def test_cka_of_features_that_were_rotated_scaled_and_moved_is_one(count, dim, unbiased):
    features = random_features(count, dim)
    assert linear_cka(features, moved(features), unbiased=unbiased) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_of_two_sets_is_symmetric_and_does_not_change_when_either_is_moved(unbiased):
    a, b = random_features(30, 6, seed=1), random_features(30, 9, seed=2)
    b[:, :6] += 0.5 * a
    found = linear_cka(a, b, unbiased=unbiased)
    assert 0.05 < found < 0.95
    assert linear_cka(b, a, unbiased=unbiased) == pytest.approx(found, abs=1e-12)
    assert linear_cka(moved(a), moved(b), unbiased=unbiased) == pytest.approx(found, abs=1e-12)


def test_cka_is_the_formula_on_features_of_kornblith():
    a, b = random_features(25, 6, seed=3), random_features(25, 4, seed=4)
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert linear_cka(a, b) == pytest.approx(expected, abs=1e-13)


def test_unbiased_cka_is_the_formula_on_kernels_of_song():
    a, b = random_features(15, 6, seed=3) + 2, random_features(15, 40, seed=4) - 1
    k, ell = a @ a.T, b @ b.T
    expected = hsic_as_in_song(k, ell) / np.sqrt(hsic_as_in_song(k, k) * hsic_as_in_song(ell, ell))
    assert linear_cka(a, b, unbiased=True) == pytest.approx(expected, abs=1e-9)


def test_independent_features_have_the_cka_of_two_wishart_matrices_and_none_without_the_bias():
    """E tr K L = n D E and E tr K^2 = n D (n + D + 1) for independent Wishart matrices of n = N - 1 dimensions."""
    count, dim, other = 40, 60, 200
    rng = np.random.default_rng(5)
    pairs = [(rng.normal(size=(count, dim)), rng.normal(size=(count, other))) for _ in range(100)]
    expected = np.sqrt(dim * other / ((count + dim) * (count + other)))
    assert np.mean([linear_cka(a, b) for a, b in pairs]) == pytest.approx(expected, abs=0.005)
    unbiased = np.array([linear_cka(a, b, unbiased=True) for a, b in pairs])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / np.sqrt(len(unbiased))


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_tensors_of_any_float_type_are_taken(kind):
    a = torch.from_numpy(random_features(20, 5)).to(kind)
    assert linear_cka(a, a) == pytest.approx(1, abs=1e-12)
    assert moment_drift(a, a).covariance == 0


def test_procrustes_finds_the_rotation_that_was_made():
    teacher = random_features(50, 6, seed=6)
    rotation = random_rotation(6, seed=7)
    found = orthogonal_procrustes(teacher, 0.2 * teacher @ rotation.T + 3)
    assert found.distance == pytest.approx(0, abs=1e-20)
    assert found.unrotated > 0.1
    assert found.rotation == pytest.approx(rotation, abs=1e-9)


def test_procrustes_of_a_set_with_itself_is_zero_without_a_rotation():
    teacher = random_features(50, 6, seed=6)
    found = orthogonal_procrustes(teacher, teacher)
    assert (found.distance, found.unrotated) == (pytest.approx(0, abs=1e-25), 0)
    assert found.rotation == pytest.approx(np.eye(6), abs=1e-9)


def test_procrustes_agrees_with_scipy_and_no_other_rotation_does_better():
    a, b = random_features(30, 5, seed=1), random_features(30, 5, seed=2)
    x, y = (m - m.mean(axis=0) for m in (a, b))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    found = orthogonal_procrustes(a, b)
    rotation, nuclear = scipy.linalg.orthogonal_procrustes(y, x)
    assert found.rotation == pytest.approx(rotation, abs=1e-9)
    assert found.distance == pytest.approx(2 - 2 * nuclear, abs=1e-12)
    others = [np.linalg.norm(x - y @ random_rotation(5, seed)) ** 2 for seed in range(50)]
    assert found.distance < min([*others, found.unrotated])
    assert orthogonal_procrustes(b, a).distance == pytest.approx(found.distance, abs=1e-12)
    assert orthogonal_procrustes(moved(a), moved(b)).distance == pytest.approx(found.distance, abs=1e-12)


def test_sets_in_orthogonal_samples_are_as_far_apart_as_can_be():
    teacher, student = np.zeros((8, 2)), np.zeros((8, 2))
    teacher[:2, 0], student[4:6, 0] = [1, -1], [1, -1]
    assert orthogonal_procrustes(teacher, student).distance == pytest.approx(2)
    assert linear_cka(teacher, student) == pytest.approx(0, abs=1e-12)


def with_moments(mean, variances, count=60, seed=0):
    """Features whose sample mean is exactly `mean` and whose covariance is exactly diagonal."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white * np.sqrt(variances) + mean


def test_diagonal_gaussians_drift_by_their_closed_forms():
    variances, others = np.array([1.0, 4.0, 4.0]), np.array([1.0, 9.0, 0.25])
    teacher = with_moments(np.zeros(3), variances)
    student = with_moments(np.array([3.0, 0, 4.0]), others, count=90, seed=1)
    drift = moment_drift(teacher, student)
    assert drift.mean == pytest.approx(5 / 3, rel=1e-9)
    assert drift.covariance == pytest.approx(np.linalg.norm(others - variances) / np.linalg.norm(variances), rel=1e-9)
    assert drift.bures == pytest.approx(np.square(np.sqrt(others) - np.sqrt(variances)).sum() / 9, rel=1e-9)


def test_drift_of_moments_does_not_change_when_both_are_rotated_scaled_and_moved():
    teacher, student = random_features(40, 5, seed=1), random_features(40, 5, seed=2) * 1.3 + 0.2
    before, after = moment_drift(teacher, student), moment_drift(moved(teacher), moved(student))
    assert (after.mean, after.covariance, after.bures) == pytest.approx((before.mean, before.covariance, before.bures))


def test_a_set_does_not_drift_from_itself_even_with_fewer_samples_than_features():
    teacher = random_features(10, 30)
    drift = moment_drift(teacher, teacher[::-1])
    assert (drift.mean, drift.covariance, drift.bures) == pytest.approx((0, 0, 0), abs=1e-8)


def test_noise_on_features_moves_every_figure_one_way():
    teacher = random_features(60, 6, seed=1)
    noise = np.random.default_rng(2).normal(size=teacher.shape)
    students = [teacher + amount * noise for amount in (0.0, 0.1, 0.3, 1.0)]

    def rises(figures):
        return all(a < b for a, b in itertools.pairwise(figures))

    assert rises([-linear_cka(teacher, student) for student in students])
    assert rises([-linear_cka(teacher, student, unbiased=True) for student in students])
    assert rises([orthogonal_procrustes(teacher, student).distance for student in students])
    assert rises([moment_drift(teacher, student).bures for student in students])
    assert rises([-mean_cosine(teacher, student) for student in students])
    assert rises([-latent_psnr(teacher, student) for student in students])


def test_cosine_is_that_of_known_angles():
    teacher, student = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [1.0, 1.0]])
    assert mean_cosine(teacher, student) == pytest.approx((1 + np.sqrt(0.5)) / 2)


def test_psnr_takes_the_teachers_range_as_its_peak():
    teacher = np.array([[0.0, 4.0], [1.0, 2.0]])
    assert latent_psnr(teacher, teacher + 0.4) == pytest.approx(20)
    assert latent_psnr(10 * teacher, 10 * teacher + 4) == pytest.approx(20)
    assert latent_psnr(teacher, teacher) == float("inf")


PAIRED = [linear_cka, orthogonal_procrustes, mean_cosine, latent_psnr]


@pytest.mark.parametrize("measure", PAIRED)
def test_other_numbers_of_samples_are_refused(measure):
    with pytest.raises(ValueError, match=r"got 8 and 9 samples, expects the same samples in both"):
        measure(random_features(8, 3), random_features(9, 3))


@pytest.mark.parametrize("measure", [*PAIRED, moment_drift])
def test_what_is_not_finite_is_refused(measure):
    broken = random_features(8, 3)
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match="got NaN or infinity, expects finite numbers"):
        measure(random_features(8, 3), broken)


@pytest.mark.parametrize("measure", [linear_cka, orthogonal_procrustes, moment_drift])
def test_a_single_sample_is_refused(measure):
    with pytest.raises(ValueError, match=r"got shape \(1, 3\), expects \(N, D\) with N of at least 2"):
        measure(random_features(1, 3), random_features(1, 3))


def test_the_unbiased_cka_takes_four_samples():
    with pytest.raises(ValueError, match="N of at least 4"):
        linear_cka(random_features(3, 3), random_features(3, 3), unbiased=True)


@pytest.mark.parametrize("measure", [linear_cka, orthogonal_procrustes, moment_drift])
def test_features_that_are_the_same_for_all_samples_are_refused(measure):
    with pytest.raises(ValueError, match="the same features for all samples"):
        measure(np.full((8, 3), 0.1), random_features(8, 3))


@pytest.mark.parametrize("measure", [orthogonal_procrustes, moment_drift, mean_cosine, latent_psnr])
def test_features_of_another_width_are_refused_where_they_are_subtracted(measure):
    with pytest.raises(ValueError, match="got 3 and 4 features, expects equal numbers"):
        measure(random_features(8, 3), random_features(8, 4))


def test_directions_and_ranges_that_are_none_are_refused():
    with pytest.raises(ValueError, match="got a row of zeros"):
        mean_cosine(random_features(3, 2), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="got constant latents"):
        latent_psnr(np.ones((3, 2)), random_features(3, 2))
