import numpy as np
import pytest
import torch
from feature_sets import drawn_and_reference
from prdc import compute_prdc
from torch_fidelity import metric_prc

from gendistill.metrics.distances.manifold import manifold_scores
from gendistill.metrics.features import matrix


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_all_four_scores_equal_prdc(neighbours):
    x, y = drawn_and_reference(dim=6)
    theirs = compute_prdc(y, x, neighbours)
    ours = manifold_scores(x, y, neighbours)
    for name in ("precision", "recall", "density", "coverage"):
        assert 0 < theirs[name] < (2 if name == "density" else 1)
        assert getattr(ours, name).mean() == pytest.approx(theirs[name], abs=1e-12)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_equal_torch_fidelity_with_sampled_images_first(neighbours):
    x, y = drawn_and_reference(dim=6)
    theirs = metric_prc.prc_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=neighbours, verbose=False
    )
    ours = manifold_scores(x, y, neighbours)
    assert ours.precision.mean() == pytest.approx(theirs[metric_prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert ours.recall.mean() == pytest.approx(theirs[metric_prc.KEY_METRIC_RECALL], abs=1e-6)


def test_the_images_of_a_line_are_evaluated_one_by_one():
    """Reference 0, 1, 2, 10, sampled 0.5, 30, 31, with the nearest neighbour: each ball can be written down."""
    x, y = np.array([[0.5], [30.0], [31.0]]), np.array([[0.0], [1.0], [2.0], [10.0]])
    scores = manifold_scores(x, y, neighbours=1)
    assert scores.precision.tolist() == [True, False, False]
    assert scores.density.tolist() == [2, 0, 0]  # inside the balls of 0 and 1, whose radius is 1
    assert scores.coverage.tolist() == [True, True, False, False]  # 2 reaches to 1, 10 to 2: no sampled image
    assert scores.recall.tolist() == [True, True, True, True]  # 0.5 reaches as far as 30
    assert not manifold_scores(x[1:], y, 1).recall.any()


def test_forgetting_a_cluster_costs_recall_and_coverage_of_that_cluster_alone():
    rng = np.random.default_rng(2)
    y = np.concatenate([rng.normal(size=(80, 4)), 50 + rng.normal(size=(40, 4))])
    scores = manifold_scores(rng.normal(size=(200, 4)), y)
    assert not scores.coverage[80:].any()
    assert not scores.recall[80:].any()
    assert scores.coverage[:80].mean() > 0.8
    assert scores.precision.mean() > 0.8


def test_a_set_of_copies_lies_on_the_surface_of_balls_without_extent():
    """All images equal: inside for precision and recall (at most the radius), outside for density (below the radius)."""
    same = np.full((12, 3), 0.1)
    scores = manifold_scores(same, same)
    assert scores.precision.all()
    assert scores.recall.all()
    assert not scores.density.any()
    assert not scores.coverage.any()


def test_equal_sets_have_full_scores_wherever_they_lie():
    y = np.random.default_rng(3).normal(size=(60, 5)) + 1e5
    scores = manifold_scores(y, y, neighbours=3)
    assert scores.precision.all()
    assert scores.recall.all()
    assert scores.coverage.all()


def test_blocks_do_not_change_the_scores(monkeypatch):
    x, y = drawn_and_reference(61, 47, dim=4)
    whole = manifold_scores(x, y)
    monkeypatch.setattr("gendistill.metrics.distances.manifold.row_blocks", lambda n, m: matrix.row_blocks(n, m, entries=7 * m))
    parts = manifold_scores(x, y)
    for name in ("precision", "recall", "density", "coverage"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_too_few_images_for_the_neighbours_are_named():
    x, y = drawn_and_reference(3, 9)
    with pytest.raises(ValueError, match="neighbours: got 3, expects at least 1 and fewer than the 3 images"):
        manifold_scores(x, y)
