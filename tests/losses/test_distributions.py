import math
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from gendistill.losses.distributions import FACTORS, mmd, random_projections, sliced_wasserstein

FIXED = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(5)).double(), dim=1)
DISTANCES = {"mmd": mmd, "sliced Wasserstein": partial(sliced_wasserstein, projections=FIXED)}
each_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())


def samples(generator, count=6, other=9, dim=4):
    return torch.randn(count, dim, generator=generator).double(), 0.5 + torch.randn(other, dim, generator=generator).double()


def sliced(x, y, generator, count):
    return sliced_wasserstein(x, y, random_projections(count, x.shape[1], generator))


def test_mmd_is_the_papers_formula_pair_by_pair_with_bandwidths_about_the_median_of_all_pairs_distances(generator):
    x, y = samples(generator)
    median = np.sort([math.dist(a, b) for a, b in combinations(torch.cat([x, y]).tolist(), 2)])[52]  # of 105

    def of_kernel(bandwidth):
        def mean(pairs):
            return np.mean([math.exp(-(math.dist(a, b) ** 2) / (2 * bandwidth**2)) for a, b in pairs])

        within = sum(mean(combinations(batch.tolist(), 2)) for batch in (x, y))
        return within - 2 * mean([(a, b) for a in x.tolist() for b in y.tolist()])

    expected = np.mean([of_kernel(factor * median) for factor in FACTORS])
    assert mmd(x, y).item() == pytest.approx(expected, rel=1e-5)


def test_the_expectation_of_mmd_is_zero_for_one_distribution_and_above_for_another(generator):
    def values(shift):
        return torch.stack([mmd(x, y - 0.5 + shift) for x, y in (samples(generator, 8, 8) for _ in range(400))])

    same, moved = values(0), values(0.5)
    assert abs(same.mean()) < 4 * same.std() / 20
    assert moved.mean() > 4 * moved.std() / 20


def test_mmd_sees_neither_a_common_scale_nor_a_move_nor_a_turn(generator):
    x, y = samples(generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double())[0]
    torch.testing.assert_close(mmd(5 * x @ turn + 2, 5 * y @ turn + 2), mmd(x, y), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sizes", [(8, 8), (5, 8), (6, 9), (1, 4)])
def test_sliced_wasserstein_on_a_line_is_the_squared_distance_of_the_quantiles(sizes, generator):
    x, y = samples(generator, *sizes, 1)
    quantiles = (np.arange(40 * 9) + 0.5) / (40 * 9)  # a multiple of all sizes
    along = [np.quantile(batch[:, 0].numpy(), quantiles, method="inverted_cdf") for batch in (x, y)]
    assert sliced_wasserstein(x, y, torch.ones(1, 1)).item() == pytest.approx(np.mean((along[0] - along[1]) ** 2), rel=1e-9)


def test_sliced_wasserstein_is_the_mean_over_lines_of_the_sorted_samples_distance(generator):
    x, y = samples(generator, 6, 9)  # each sample 3 or 2 times are 18 of each, the same distributions
    lines = random_projections(5, 4, generator).double()
    values = []
    for line in lines.numpy():
        along = np.sort(np.repeat(x.numpy() @ line, 3)), np.sort(np.repeat(y.numpy() @ line, 2))
        values.append(np.mean((along[0] - along[1]) ** 2))
    assert sliced_wasserstein(x, y, lines).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_sliced_wasserstein_of_a_moved_batch_is_the_squared_move_over_the_dimension(generator):
    x = torch.randn(50, 6, generator=generator)
    move = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    moved = x[torch.randperm(50, generator=generator)] + move
    value = sliced(x, moved, generator, 20000)
    assert value.item() == pytest.approx(move.square().sum().item() / 6, rel=0.03)


def test_sliced_wasserstein_between_gaussians_of_one_covariance_is_the_means_squared_distance_over_the_dimension(generator):
    move = torch.tensor([1.0, -2.0, 0.5, 0.0])
    x, y = torch.randn(2, 4000, 4, generator=generator) @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 1.0]))
    value = sliced(x, y + move, generator, 2000)
    assert value.item() == pytest.approx(move.square().sum().item() / 4, rel=0.06)


def test_sliced_wasserstein_between_centred_gaussians_is_the_squared_difference_of_their_deviations(generator):
    x, y = torch.randn(2, 4000, 3, generator=generator)
    value = sliced(3 * x, y, generator, 200)
    assert value.item() == pytest.approx(4, rel=0.06)


def test_projections_are_of_length_1_and_spread_evenly(generator):
    lines = random_projections(20000, 3, generator)
    torch.testing.assert_close(lines.norm(dim=1), torch.ones(20000))
    torch.testing.assert_close(lines.T @ lines / 20000, torch.eye(3) / 3, atol=0.02, rtol=0)


@each_distance
def test_a_distance_is_symmetric_and_sees_neither_the_order_of_samples_nor_their_shape(distance, generator):
    x, y = samples(generator)
    expected = distance(x, y)
    torch.testing.assert_close(distance(y, x), expected)
    shuffled = x[torch.randperm(6, generator=generator)]
    torch.testing.assert_close(distance(shuffled, y.view(9, 1, 2, 2)), expected)


def test_sliced_wasserstein_is_zero_at_equality_positive_elsewhere_and_the_same_for_doubled_batches(generator):
    distance, (x, y) = DISTANCES["sliced Wasserstein"], samples(generator)
    assert distance(x, x.flip(0)).item() == pytest.approx(0, abs=1e-12)
    assert distance(x, y) > 1e-3
    torch.testing.assert_close(distance(x.repeat(2, 1), y), distance(x, y))


def test_gradients_of_sliced_wasserstein_agree_with_finite_differences(generator):
    x, y = samples(generator, 3, 4)
    assert torch.autograd.gradcheck(DISTANCES["sliced Wasserstein"], (x.requires_grad_(), y.requires_grad_()))


@each_distance
@pytest.mark.parametrize("ties", ["within", "between", "everywhere"])
def test_gradients_are_finite_and_no_explosion_where_samples_coincide(distance, ties, generator):
    x, y = (batch.float() for batch in samples(generator))
    if ties == "within":
        x[1] = x[0]
    elif ties == "between":
        x[:] = y[:6]
    else:
        x[:], y[:] = 0.3, 0.3
    value = distance(x.requires_grad_(), y)
    value.backward()
    assert value.isfinite()
    assert x.grad.abs().max() < 100  # False for NaN too


@each_distance
def test_half_precision_and_autocast_are_computed_in_float32(distance, generator):
    x, y = (batch.float() for batch in samples(generator))
    expected = distance(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(x, y), expected)
    for dtype in (torch.float16, torch.bfloat16):
        halves = (300 * x).to(dtype), (300 * y).to(dtype)
        value = distance(*halves)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert torch.equal(value, distance(*(half.float() for half in halves)))


@pytest.mark.parametrize("name", DISTANCES)
def test_descending_the_distance_brings_samples_to_the_others_distribution(name, generator):
    y = torch.randn(64, 4, generator=generator) * torch.tensor([0.5, 1.5, 1.0, 1.0]) + torch.tensor([2.0, -1.0, 0.0, 0.0])
    x = torch.randn(64, 4, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.1)

    def apart():
        return sliced(x, y, torch.Generator().manual_seed(3), 128).item()

    before = apart()
    for _ in range(100):
        optimizer.zero_grad()
        DISTANCES[name](x, y).backward()
        optimizer.step()
    assert apart() < 0.15 * before


def test_what_cannot_be_compared_is_refused():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"batch of 1: .* expects at least 2 samples"):
        mmd(x[:1], x)
    with pytest.raises(ValueError, match="dimension 4: expects that of the other batch, 5"):
        mmd(x, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"projections \(2, 5\): expects 4 columns"):
        sliced_wasserstein(x, x, torch.zeros(2, 5))
