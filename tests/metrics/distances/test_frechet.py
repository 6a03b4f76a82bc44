import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid import fid as clean_fid
from pytorch_fid import fid_score as pytorch_fid
from torch import nn
from torch_fidelity import metric_fid
from torchmetrics.image.fid import FrechetInceptionDistance

from gendistill.metrics.distances import frechet
from gendistill.metrics.distances.frechet import frechet_distance, frechet_distance_infinity
from gendistill.metrics.features.gaussian import GaussianStatistics, Moments, gaussian_statistics


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


def test_fewer_images_than_features_in_orthogonal_directions_add_their_variances():
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
    """16x16 patch means: 12 features of a 32x32 image, a feature network that both sides can run."""

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
    with pytest.raises(ValueError, match=r"bad\.npz: got arrays that are pickled"):
        GaussianStatistics.load(tmp_path / "bad.npz")


def test_wrong_features_are_named_in_the_error():
    with pytest.raises(ValueError, match="at least 2"):
        gaussian_statistics(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="NaN"):
        gaussian_statistics(np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="4 and 5 features"):
        frechet_distance(random_statistics(4, 9, 0), random_statistics(5, 9, 0))


@pytest.mark.parametrize("count", [300, 20])
def test_the_distance_equals_three_other_libraries_over_the_same_features(count):
    """Of 20 images of 32 features too: torch-fidelity takes eigenvalues of a singular product, the two others its root."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(0.1, 1.2, (count, 32)), rng.normal(size=(250, 32)) * np.linspace(0.2, 2, 32)
    a, b = gaussian_statistics(x), gaussian_statistics(y)
    ours = frechet_distance(a, b)
    moments = (a.mean, a.covariance, b.mean, b.covariance)
    fidelity = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(torch.from_numpy(x)),
        metric_fid.fid_features_to_statistics(torch.from_numpy(y)),
        verbose=False,
    )
    assert ours == pytest.approx(fidelity[metric_fid.KEY_METRIC_FID], rel=1e-6)
    assert ours == pytest.approx(pytorch_fid.calculate_frechet_distance(*moments), rel=1e-5)
    assert ours == pytest.approx(clean_fid.frechet_distance(*moments), rel=1e-5)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6, 0.0])
def test_the_fast_path_keeps_known_distances_whatever_the_condition_of_the_covariance(smallest):
    """c S against S: (root(c) - 1)^2 tr S, and 0 from itself, for eigenvalues from 1 down to `smallest`."""
    dim = 300
    q, _ = np.linalg.qr(np.random.default_rng(11).normal(size=(dim, dim)))
    eigenvalues = np.geomspace(1, smallest, dim) if smallest else np.linspace(1, 0, dim)
    covariance = (q * eigenvalues) @ q.T
    a = GaussianStatistics(np.zeros(dim), covariance, None)
    assert frechet_distance(a, a) < 1e-6
    larger = GaussianStatistics(np.zeros(dim), 1.21 * covariance, None)
    assert frechet_distance(a, larger) == pytest.approx(0.01 * eigenvalues.sum(), abs=1e-8)


def test_eigenvalues_give_way_to_singular_values_where_their_roots_are_too_coarse():
    q, _ = np.linalg.qr(np.random.default_rng(12).normal(size=(60, 60)))
    graded = (q * np.geomspace(1, 1e-12, 60)) @ q.T
    exact = np.geomspace(1, 1e-12, 60).sum()
    assert frechet._nuclear_norm(graded, tolerance=0.0) == pytest.approx(exact, abs=1e-13)
    assert abs(frechet._nuclear_norm(graded, tolerance=np.inf) - exact) > 1e-10


def test_covariances_that_float32_left_with_negative_eigenvalues_have_their_distance(tmp_path):
    exact = random_statistics(64, 30, seed=13)
    rounded = GaussianStatistics(exact.mean, exact.covariance.astype(np.float32).astype(np.float64), None)
    assert np.linalg.eigvalsh(rounded.covariance)[0] < 0
    assert frechet_distance(exact, rounded) < 1e-4 * np.trace(exact.covariance)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_blocks_equal_those_of_all_features_however_far_from_zero(offset):
    x = np.random.default_rng(14).normal(size=(1000, 6)) * np.linspace(0.1, 3, 6) + offset
    moments, start = Moments(), 0
    for size in [1, 7, 300, 64, 2, 500, 126]:
        moments.add(torch.from_numpy(x[start : start + size]))
        start += size
        if size == 64:
            moments.statistics()  # looking in between changes nothing
    together, apart = gaussian_statistics(x), moments.statistics()
    np.testing.assert_allclose(apart.mean, together.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(apart.covariance, together.covariance, rtol=1e-8, atol=1e-10)
    assert apart.count == 1000


def test_a_buffer_that_is_written_over_after_adding_does_not_change_the_moments():
    moments, buffer = Moments(), np.ones((4, 3))
    moments.add(buffer)
    buffer[:] = 7
    assert moments.statistics().mean.tolist() == [1, 1, 1]


def test_moments_name_blocks_that_do_not_fit():
    moments = Moments()
    with pytest.raises(ValueError, match="got 0, expects at least 2"):
        moments.statistics()
    moments.add(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="got 5 per image after blocks of 4, expects 4"):
        moments.add(np.zeros((3, 5)))


def test_the_extrapolated_distance_is_nearer_to_that_of_infinitely_many_images():
    """Distance of N(0, I) to itself: 0 for infinitely many images, about D^2 / N for N."""
    rng = np.random.default_rng(16)
    reference = GaussianStatistics(np.zeros(16), np.eye(16), None)
    x = rng.normal(size=(4000, 16))
    value = frechet_distance_infinity(x, reference)
    assert abs(value) < 0.3 * frechet_distance(gaussian_statistics(x), reference)
    assert value == frechet_distance_infinity(x, reference)
    with pytest.raises(ValueError, match="N of at least 3"):
        frechet_distance_infinity(x[:2], reference)


def test_pytorch_fid_and_clean_fid_read_what_we_save_and_we_read_what_they_save(tmp_path):
    a = random_statistics(8, 20, seed=17)
    a.save(tmp_path / "ours.npz")
    mean, covariance = pytorch_fid.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 8, "cpu")
    np.testing.assert_array_equal(mean, a.mean)
    np.testing.assert_array_equal(covariance, a.covariance)
    arrays = np.load(tmp_path / "ours.npz")  # as cleanfid.features.get_reference_statistics does
    assert clean_fid.frechet_distance(arrays["mu"], arrays["sigma"], a.mean, a.covariance) == pytest.approx(0, abs=1e-6)
    np.savez_compressed(tmp_path / "theirs.npz", mu=a.mean, sigma=a.covariance)  # as save_fid_stats, make_custom_stats
    np.testing.assert_array_equal(GaussianStatistics.load(tmp_path / "theirs.npz", dim=8).covariance, a.covariance)


def test_files_that_hold_no_fitting_statistics_get_a_sentence(tmp_path):
    path = tmp_path / "reference.npz"
    random_statistics(8, 20, seed=18).save(path)
    with pytest.raises(ValueError, match="got statistics of 8 features, expects 128"):
        GaussianStatistics.load(path, dim=128)
    np.savez(path, feats=np.zeros((5, 8)))  # what clean-fid saves for KID
    with pytest.raises(ValueError, match=r"got arrays \['feats'\], expects 'mu'"):
        GaussianStatistics.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"got mu \(3,\) and sigma \(4, 4\)"):
        GaussianStatistics.load(path)
    np.savez(path, mu=np.array([0, np.nan]), sigma=np.eye(2))
    with pytest.raises(ValueError, match="NaN"):
        GaussianStatistics.load(path)
    np.savez(path, mu=np.zeros(2), sigma=np.array([[1.0, 5.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianStatistics.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no \.npz"):
        GaussianStatistics.load(path)
    with pytest.raises(FileNotFoundError):
        GaussianStatistics.load(tmp_path / "missing.npz")
