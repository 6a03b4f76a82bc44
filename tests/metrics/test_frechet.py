import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from gendistill.metrics.frechet import GaussianStatistics, frechet_distance, gaussian_statistics


def with_moments(mean, covariance, count, seed=0):
    """`count` features whose sample mean and unbiased covariance are exactly the given ones."""
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def random_statistics(dim, rank, seed):
    return gaussian_statistics(np.random.default_rng(seed).normal(size=(rank + 1, dim)) * np.linspace(0.1, 3, dim))


def test_diagonal_gaussians_have_the_closed_form_distance():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([1.0, 1.0, 0.0])
    var_a, var_b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    a = gaussian_statistics(with_moments(mean_a, np.diag(var_a), 50, seed=1))
    b = gaussian_statistics(with_moments(mean_b, np.diag(var_b), 80, seed=2))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(var_a) - np.sqrt(var_b)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_gaussians_that_do_not_commute_match_the_matrix_root_of_scipy():
    a, b = random_statistics(20, 60, seed=3), random_statistics(20, 90, seed=4)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [200, 10])
def test_a_set_is_at_distance_zero_from_itself_even_if_it_is_rank_deficient(rank):
    a = random_statistics(64, rank, seed=5)
    assert frechet_distance(a, a) < 1e-6


def test_fewer_pictures_than_features_in_orthogonal_directions_add_their_variances():
    flat, upright = np.zeros((40, 40)), np.zeros((40, 40))
    flat[0, 0], upright[1, 1] = 2.0, 3.0
    a, b = GaussianStatistics(np.zeros(40), flat, 5), GaussianStatistics(np.zeros(40), upright, 5)
    assert frechet_distance(a, b) == pytest.approx(5.0, abs=1e-12)
    assert frechet_distance(a, GaussianStatistics(np.zeros(40), 4 * flat, 5)) == pytest.approx(2.0, abs=1e-12)


def test_the_distance_is_symmetric_and_blind_to_rotation():
    a, b = random_statistics(30, 12, seed=6), random_statistics(30, 90, seed=7)
    q, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(30, 30)))
    turned = [GaussianStatistics(q @ s.mean, q @ s.covariance @ q.T, s.count) for s in (a, b)]
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-8)


class MeanOfPatches(nn.Module):
    """16x16 patch means: 12 features of a 32x32 picture, a feature network that both sides can run."""

    num_features = 12

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float(), 16).flatten(1)


def test_the_distance_equals_the_fid_of_torchmetrics_over_the_same_features():
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    fake = torch.randint(200, (50, 3, 32, 32), generator=generator, dtype=torch.uint8)
    network = MeanOfPatches()
    reference = FrechetInceptionDistance(feature=network, input_img_size=(3, 32, 32))
    reference.update(real, real=True)
    reference.update(fake, real=False)
    ours = frechet_distance(gaussian_statistics(network(real)), gaussian_statistics(network(fake)))
    assert ours == pytest.approx(reference.compute().item(), rel=1e-5)


def test_saved_statistics_load_unchanged_and_read_as_pytorch_fid_names_them(tmp_path):
    a = random_statistics(6, 20, seed=9)
    a.save(tmp_path / "reference.npz")
    loaded = GaussianStatistics.load(tmp_path / "reference.npz")
    np.testing.assert_array_equal(loaded.mean, a.mean)
    np.testing.assert_array_equal(loaded.covariance, a.covariance)
    assert loaded.count == 21
    with np.load(tmp_path / "reference.npz") as arrays:
        assert {"mu", "sigma"} <= set(arrays.files)


def test_statistics_of_pytorch_fid_load_without_a_count(tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert GaussianStatistics.load(tmp_path / "theirs.npz").count is None


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(ValueError, match="allow_pickle"):
        GaussianStatistics.load(tmp_path / "bad.npz")


def test_wrong_features_are_named_in_the_error():
    with pytest.raises(ValueError, match="at least 2"):
        gaussian_statistics(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        gaussian_statistics(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="4 and 5 features"):
        frechet_distance(random_statistics(4, 9, 0), random_statistics(5, 9, 0))
