import math
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from gendistill.losses.distributions import (
    energy_distance,
    gaussian_kernel,
    linear_kernel,
    median_gaussian_kernels,
    mmd,
    polynomial_kernel,
    random_projections,
    sliced_wasserstein,
)
from gendistill.metrics.distances.kernel import kid_of_all

FIXED = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(5)).double(), dim=1)
DISTANCES = {
    "mmd by the median": mmd,
    "mmd of a fixed Gaussian": partial(mmd, kernels=[gaussian_kernel(1.5)]),
    "biased mmd of a cubic": partial(mmd, kernels=[polynomial_kernel()], unbiased=False),
    "energy": energy_distance,
    "biased energy": partial(energy_distance, unbiased=False),
    "sliced Wasserstein": partial(sliced_wasserstein, projections=FIXED),
    "sliced Wasserstein, p = 1": partial(sliced_wasserstein, projections=FIXED, p=1),
}
each_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())


def samples(generator, count=6, other=9, dim=4):
    return torch.randn(count, dim, generator=generator).double(), 0.5 + torch.randn(other, dim, generator=generator).double()


def test_the_unbiased_mmd_of_the_cubic_kernel_is_kid_of_all_pictures(generator):
    x, y = samples(generator, 40, 30, 16)
    assert mmd(x, y, [polynomial_kernel()]).item() == pytest.approx(kid_of_all(x.numpy(), y.numpy()), rel=1e-9)


KERNELS = {
    "gaussian": (gaussian_kernel(1.5), lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * 1.5**2))),
    "polynomial": (polynomial_kernel(2, 0.3, 0.7), lambda a, b: (0.3 * np.dot(a, b) + 0.7) ** 2),
    "linear": (linear_kernel(), np.dot),
}


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("kernel", "by_hand"), KERNELS.values(), ids=KERNELS.keys())
def test_mmd_is_the_papers_formula_pair_by_pair(kernel, by_hand, unbiased, generator):
    x, y = samples(generator)

    def within(batch):
        values = [by_hand(a, b) for i, a in enumerate(batch) for j, b in enumerate(batch) if i != j or not unbiased]
        return np.mean(values)

    between = np.mean([by_hand(a, b) for a in x.tolist() for b in y.tolist()])
    expected = within(x.tolist()) + within(y.tolist()) - 2 * between
    assert mmd(x, y, [kernel], unbiased).item() == pytest.approx(expected, rel=1e-9)


def test_the_biased_mmd_of_the_linear_kernel_is_the_squared_distance_of_the_means(generator):
    x, y = samples(generator)
    expected = (x.mean(0) - y.mean(0)).square().sum()
    torch.testing.assert_close(mmd(x, y, [linear_kernel()], unbiased=False), expected)


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_of_a_gaussian_kernel_between_gaussians_is_its_closed_form(unbiased, generator):
    """For variance s^2 and bandwidth h: 2 (h^2 / (h^2 + 2 s^2))^(D/2) (1 - exp(-|mu|^2 / (2 (h^2 + 2 s^2))))."""
    dim, s, h, count = 3, 0.8, 1.2, 2000
    mean = torch.tensor([0.5, -1.0, 0.3])
    x, y = s * torch.randn(2, count, dim, generator=generator)
    spread = h**2 + 2 * s**2
    expected = 2 * (h**2 / spread) ** (dim / 2) * (1 - math.exp(-mean.square().sum().item() / (2 * spread)))
    assert mmd(x, y + mean, [gaussian_kernel(h)], unbiased).item() == pytest.approx(expected, rel=0.1)
    assert abs(mmd(x, y, [gaussian_kernel(h)], unbiased).item()) < 0.01 * expected


@pytest.mark.parametrize("distance", [DISTANCES["mmd of a fixed Gaussian"], energy_distance])
def test_the_unbiased_distances_expectation_is_the_same_for_small_batches_and_zero_for_one_distribution(distance, generator):
    def values(count, shift):
        pairs = (samples(generator, count, count) for _ in range(400))
        return torch.stack([distance(x, y - 0.5 + shift) for x, y in pairs])

    assert abs(values(4, 0).mean()) < 4 * values(4, 0).std() / 20
    small, large = values(4, 0.5), values(20, 0.5)
    assert abs(small.mean() - large.mean()) < 4 * small.std() / 20


def test_the_median_heuristic_takes_the_median_of_all_pairs_distances(generator):
    x, y = samples(generator, 2, 4)
    median = np.median([math.dist(a, b) for a, b in combinations(torch.cat([x, y]).tolist(), 2)])  # of 15
    by_hand = [gaussian_kernel(float(median) * factor) for factor in (0.5, 2)]
    torch.testing.assert_close(mmd(x, y, median_gaussian_kernels(x, y, (0.5, 2))), mmd(x, y, by_hand), rtol=1e-6, atol=1e-9)


def test_the_median_is_a_constant_to_the_gradient(generator):
    x, y = samples(generator)
    kernels = median_gaussian_kernels(x, y)
    both = x.requires_grad_(), y.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(mmd(x, y), both), torch.autograd.grad(mmd(x, y, kernels), both))


def test_several_kernels_are_averaged(generator):
    x, y = samples(generator)
    kernels = [gaussian_kernel(0.5), polynomial_kernel(), linear_kernel()]
    torch.testing.assert_close(mmd(x, y, kernels), torch.stack([mmd(x, y, [kernel]) for kernel in kernels]).mean())
    torch.testing.assert_close(mmd(x, y), mmd(x, y, median_gaussian_kernels(x, y, (0.25, 0.5, 1, 2, 4))))


def test_mmd_by_the_median_sees_neither_a_common_scale_nor_a_move_nor_a_turn(generator):
    x, y = samples(generator)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator).double())[0]
    torch.testing.assert_close(mmd(5 * x @ turn + 2, 5 * y @ turn + 2), mmd(x, y), rtol=1e-5, atol=1e-8)


def test_the_energy_distance_on_a_line_is_the_square_of_scipys(generator):
    x, y = samples(generator, 7, 11, 1)
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y, unbiased=False).item() == pytest.approx(expected, rel=1e-9)


def test_the_energy_distance_of_known_points():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])  # between: 1, 5, 1, 3
    assert energy_distance(x, y).item() == pytest.approx(2 * 2.5 - 2 - 4)
    assert energy_distance(x, y, unbiased=False).item() == pytest.approx(2 * 2.5 - 1 - 2)


@pytest.mark.parametrize("sizes", [(8, 8), (5, 8), (6, 9), (1, 4)])
def test_sliced_wasserstein_on_a_line_is_scipys_wasserstein_distance(sizes, generator):
    x, y = samples(generator, *sizes, 1)
    line = torch.ones(1, 1).double()
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, line, p=1).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_sliced_wasserstein_is_the_mean_over_lines_of_the_sorted_samples_distance(p, generator):
    x, y = samples(generator, 6, 9)  # each sample 3 or 2 times are 18 of each, the same distributions
    lines = random_projections(5, 4, generator).double()
    values = []
    for line in lines.numpy():
        along = np.sort(np.repeat(x.numpy() @ line, 3)), np.sort(np.repeat(y.numpy() @ line, 2))
        values.append(np.mean(np.abs(along[0] - along[1]) ** p))
    assert sliced_wasserstein(x, y, lines, p=p).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_sliced_wasserstein_of_a_moved_batch_is_the_squared_move_over_the_dimension(generator):
    x = torch.randn(50, 6, generator=generator)
    move = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0])
    moved = x[torch.randperm(50, generator=generator)] + move
    value = sliced_wasserstein(x, moved, generator=generator, num_projections=20000)
    assert value.item() == pytest.approx(move.square().sum().item() / 6, rel=0.03)


def test_sliced_wasserstein_between_gaussians_of_one_covariance_is_the_means_squared_distance_over_the_dimension(generator):
    move = torch.tensor([1.0, -2.0, 0.5, 0.0])
    x, y = torch.randn(2, 4000, 4, generator=generator) @ torch.diag(torch.tensor([2.0, 1.0, 0.5, 1.0]))
    value = sliced_wasserstein(x, y + move, generator=generator, num_projections=2000)
    assert value.item() == pytest.approx(move.square().sum().item() / 4, rel=0.06)


def test_sliced_wasserstein_between_centred_gaussians_is_the_squared_difference_of_their_deviations(generator):
    x, y = torch.randn(2, 4000, 3, generator=generator)
    value = sliced_wasserstein(3 * x, y, generator=generator, num_projections=200)
    assert value.item() == pytest.approx(4, rel=0.06)


def test_projections_are_of_length_1_and_spread_evenly(generator):
    lines = random_projections(20000, 3, generator)
    torch.testing.assert_close(lines.norm(dim=1), torch.ones(20000))
    torch.testing.assert_close(lines.T @ lines / 20000, torch.eye(3) / 3, atol=0.02, rtol=0)


def test_the_projections_come_from_the_generator_alone(generator):
    x, y = samples(generator)
    first, again, other = (
        sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(seed), num_projections=3) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.isclose(first, other)


@each_distance
def test_a_distance_is_symmetric_and_sees_neither_the_order_of_samples_nor_their_shape(distance, generator):
    x, y = samples(generator)
    expected = distance(x, y)
    torch.testing.assert_close(distance(y, x), expected)
    shuffled = x[torch.randperm(6, generator=generator)]
    torch.testing.assert_close(distance(shuffled, y.view(9, 1, 2, 2)), expected)


@pytest.mark.parametrize("name", ["biased mmd of a cubic", "biased energy", "sliced Wasserstein", "sliced Wasserstein, p = 1"])
def test_a_distance_with_all_pairs_is_zero_at_equality_positive_elsewhere_and_the_same_for_doubled_batches(name, generator):
    distance, (x, y) = DISTANCES[name], samples(generator)
    assert distance(x, x.flip(0)).item() == pytest.approx(0, abs=1e-12)
    assert distance(x, y) > 1e-3
    torch.testing.assert_close(distance(x.repeat(2, 1), y), distance(x, y))


@each_distance
def test_gradients_agree_with_finite_differences(distance, generator):
    x, y = samples(generator, 3, 4)
    if distance is mmd:  # whose bandwidth is a constant to the gradient, but moves with finite differences
        distance = partial(mmd, kernels=median_gaussian_kernels(x, y))
    assert torch.autograd.gradcheck(distance, (x.requires_grad_(), y.requires_grad_()))


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


@pytest.mark.parametrize("name", ["mmd by the median", "energy", "biased energy", "sliced Wasserstein"])
def test_descending_the_distance_brings_samples_to_the_others_distribution(name, generator):
    y = torch.randn(64, 4, generator=generator) * torch.tensor([0.5, 1.5, 1.0, 1.0]) + torch.tensor([2.0, -1.0, 0.0, 0.0])
    x = torch.randn(64, 4, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.1)

    def apart():
        return sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(3)).item()

    before = apart()
    for _ in range(100):
        optimizer.zero_grad()
        DISTANCES[name](x, y).backward()
        optimizer.step()
    assert apart() < 0.15 * before


def test_what_cannot_be_compared_is_refused(generator):
    x = torch.zeros(3, 4)
    for distance in (mmd, energy_distance):
        with pytest.raises(ValueError, match=r"batch of 1: .* takes at least 2 samples"):
            distance(x[:1], x)
        with pytest.raises(ValueError, match="dimension 4: takes that of the other batch, 5"):
            distance(x, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"p 0\.5: takes at least 1"):
        sliced_wasserstein(x, x, generator=generator, p=0.5)
    with pytest.raises(ValueError, match="takes projections, or a generator"):
        sliced_wasserstein(x, x)
    with pytest.raises(ValueError, match="not both"):
        sliced_wasserstein(x, x, torch.zeros(2, 4), generator)
    with pytest.raises(ValueError, match=r"projections \(2, 5\): takes 4 columns"):
        sliced_wasserstein(x, x, torch.zeros(2, 5))
