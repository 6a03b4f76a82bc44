import numpy as np
import pytest
import torch
from cleanfid import fid as clean_fid
from feature_sets import drawn_and_reference
from torch import nn
from torch_fidelity import metric_kid
from torchmetrics.image.kid import KernelInceptionDistance

from gendistill.metrics.distances.cmmd import cmmd, gaussian_kernel
from gendistill.metrics.distances.kernel import kernel_sums, kid, kid_of_all, polynomial_kernel
from gendistill.metrics.features import matrix


@pytest.mark.parametrize(("subsets", "size"), [(100, 50), (2, 10)])
def test_kid_equals_torch_fidelity_subset_by_subset(subsets, size):
    x, y = drawn_and_reference()
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    mean, std = kid(x, y, subsets, size)
    assert mean == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-8)
    assert std == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-8)


def test_kid_with_subsets_as_large_as_the_set_equals_clean_fid_and_the_estimate_over_all():
    x, y = drawn_and_reference(100, 100)
    mean, std = kid(x, y, subsets=3)
    assert mean == pytest.approx(clean_fid.kernel_distance(y, x, num_subsets=3), rel=1e-8)
    assert mean == pytest.approx(kid_of_all(x, y), rel=1e-8)
    assert std == pytest.approx(0, abs=1e-9)


class Flat(nn.Module):
    num_features = 12

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float() / 255, 16).flatten(1)


def test_kid_equals_torchmetrics_over_the_same_features():
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    fake = torch.randint(200, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    reference = KernelInceptionDistance(feature=Flat(), subsets=2, subset_size=60)
    reference.update(real, real=True)
    reference.update(fake, real=False)
    ours = kid_of_all(Flat()(fake), Flat()(real))
    assert ours == pytest.approx(reference.compute()[0].item(), rel=1e-3)


def test_the_unbiased_estimate_is_zero_on_average_for_sets_of_one_distribution():
    values = [kid_of_all(*np.random.default_rng(seed).normal(size=(2, 50, 8))) for seed in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_cmmd_is_the_mean_over_all_pairs_of_the_papers_kernel():
    x, y = drawn_and_reference(30, 40, dim=16)
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    within = [[np.exp(-((a - b) ** 2).sum() / 200) for b in z] for z in (x, y) for a in z]
    expected = 1000 * (np.mean(within[:30]) + np.mean(within[30:]))
    expected -= 2000 * np.mean([[np.exp(-((a - b) ** 2).sum() / 200) for b in y] for a in x])
    assert cmmd(3 * x, 0.5 * y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) < 1e-9


@pytest.mark.parametrize("kernel", [polynomial_kernel, gaussian_kernel])
def test_sums_over_blocks_equal_sums_over_the_whole_kernel(kernel, monkeypatch):
    x, u = drawn_and_reference(37, 53, dim=5)[0], np.random.default_rng(1).random((4, 37))
    monkeypatch.setattr("gendistill.metrics.distances.kernel.row_blocks", lambda n, m: matrix.row_blocks(n, m, entries=5 * m))
    np.testing.assert_allclose(kernel_sums(x, u, kernel), np.einsum("bi,ij,bj->b", u, kernel(x, x), u))
    off = kernel(x, x) * (1 - np.eye(37))
    np.testing.assert_allclose(kernel_sums(x, u, kernel, without_diagonal=True), np.einsum("bi,ij,bj->b", u, off, u))


def test_sets_that_do_not_fit_are_named_in_the_error():
    x, y = drawn_and_reference()
    with pytest.raises(ValueError, match="24 and 5 features"):
        kid(x, y[:, :5])
    with pytest.raises(ValueError, match="subsets: got 0 of 1000"):
        kid(x, y, subsets=0)
    with pytest.raises(ValueError, match="N of at least 2"):
        kid_of_all(x[:1], y)
    with pytest.raises(ValueError, match="row of zeros"):
        cmmd(0 * x, y)
