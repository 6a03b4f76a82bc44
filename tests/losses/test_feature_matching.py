"""Losses between features of the student's samples and of real ones: those of the formulas, and they follow the conditions."""

import pytest
import torch

from gendistill.losses.distributions import FACTORS
from gendistill.losses.feature_matching import (
    FEATURE_MATCHING,
    FrechetMoments,
    conditional_mmd,
    drift,
    log_similarity,
    median_distance,
)
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.gaussian import gaussian_statistics


@pytest.fixture
def given(generator):
    """Features of 5 samples and of 7 real ones, with conditions in the plane, and the similarities of these."""
    x, y = torch.randn(5, 3, generator=generator), torch.randn(7, 3, generator=generator) + 0.5
    c, d = torch.randn(5, 2, generator=generator), torch.randn(7, 2, generator=generator)
    return x, y, log_similarity(c, c, torch.tensor(2.0)), log_similarity(c, d, torch.tensor(2.0)), (c, d)


def test_conditions_are_similar_by_a_gaussian_kernel(given):
    _, _, _, between, (c, d) = given
    torch.testing.assert_close(between[1, 2].exp(), (-(c[1] - d[2]).square().sum() / (2 * 0.5**2)).exp())


def test_the_discrepancy_is_that_of_its_formula(given):
    x, y, among, between, _ = given

    def kernel(one, other):
        return sum((-(one - other).square().sum() / (2 * (1.5 * factor) ** 2)).exp() for factor in FACTORS) / len(FACTORS)

    own = [among[i, j].exp() * kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j]
    cross = [between[i, j].exp() * kernel(x[i], y[j]) for i in range(5) for j in range(7)]
    expected = sum(own) / len(own) - 2 * sum(cross) / len(cross)
    torch.testing.assert_close(conditional_mmd(x, y, among, between, torch.tensor(1.5)), expected)


def test_the_drift_is_the_difference_of_two_mean_shifts(given):
    x, y, among, between, _ = given

    def shift(i, samples, similarity, left_out=None):
        kept = [j for j in range(len(samples)) if j != left_out]
        weights = [similarity[i, j].exp() * (-(x[i] - samples[j]).norm() / 0.7).exp() for j in kept]
        return sum(weight * (samples[j] - x[i]) for weight, j in zip(weights, kept, strict=True)) / sum(weights)

    expected = torch.stack([shift(i, y, between) - shift(i, x, among, left_out=i) for i in range(5)])
    torch.testing.assert_close(drift(x, y, among, between, 0.7), expected)
    with pytest.raises(ValueError, match="drift expects at least 2 samples"):
        drift(x[:1], y, among[:1, :1], between[:1], 0.7)


@pytest.mark.parametrize("name", FEATURE_MATCHING)
def test_samples_move_to_the_real_ones_of_their_own_condition(name, generator):
    """Two conditions, whose real samples are on the left and on the right; the student starts from one Gaussian for both."""
    labels, known = torch.arange(64) % 2, torch.arange(200) % 2
    one_hot = torch.eye(2)
    real = 0.2 * torch.randn(200, 2, generator=generator) + torch.stack([2.0 * known - 1, 0.0 * known], dim=1)
    student = torch.randn(64, 2, generator=generator).requires_grad_()
    scale = median_distance(one_hot[known])
    among = log_similarity(one_hot[labels], one_hot[labels], scale)
    between = log_similarity(one_hot[labels], one_hot[known], scale)
    optimizer = torch.optim.Adam([student], 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        FEATURE_MATCHING[name](student, real, among, between, median_distance(real)).backward()
        optimizer.step()
    found = student.detach()
    for label in (0, 1):
        of_label = found[labels == label]
        away = (of_label - real[known == label].mean(0)).norm(dim=1)
        assert 0.05 < away.median() < 0.5
        assert (away < 1).float().mean() > 0.8
    assert student.grad.isfinite().all()


def test_the_frechet_loss_and_its_gradient_are_those_of_the_distance_of_a_whole_population(generator):
    real = torch.randn(400, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64).mul(2).add(1).requires_grad_()
    moments = FrechetMoments(real, population=300)
    assert float(moments.distance()[0]) == pytest.approx(0, abs=1e-9)
    moments.update(x)
    loss = moments.loss(x)
    expected = frechet_distance(*(gaussian_statistics(features.detach()) for features in (x, real)))
    assert float(loss.detach()) == pytest.approx(expected, rel=0.01)  # of covariances with N - 1
    loss.backward()
    root = moments.real_root

    def distance(x):
        mean, covariance = x.mean(0), torch.cov(x.T, correction=0)
        cross = torch.linalg.eigvalsh(root @ covariance @ root).sqrt().sum()
        return (mean - moments.real_mean).square().sum() + covariance.trace() + moments.real_covariance.trace() - 2 * cross

    torch.testing.assert_close(x.grad, torch.autograd.grad(distance(x), x)[0])
    torch.testing.assert_close(loss, distance(x))


def test_the_moments_of_the_frechet_loss_follow_the_latest_samples_of_several_batches(generator):
    real, moved = torch.randn(2000, 3, generator=generator), torch.randn(4000, 3, generator=generator) + 2
    moments, distances = FrechetMoments(real, population=200), []
    for batch in moved.split(50):
        moments.update(batch)
        distances.append(float(moments.distance()[0]))
    assert 0 < distances[0] < distances[3] < distances[10]
    assert distances[-1] == pytest.approx(12, rel=0.1)
    before = moments.mean.clone()
    moments.update(torch.full((4, 3), torch.nan))
    assert torch.equal(moments.mean, before)
