import numpy as np
import pytest
from feature_sets import drawn_and_reference
from vendi_score import vendi

from gendistill.metrics.distances.diversity import intra_prompt_diversity
from gendistill.metrics.distances.vendi import vendi_score


@pytest.mark.parametrize("shape", [(150, 24), (20, 24), (24, 24)])
def test_the_score_equals_vendi_score_by_images_and_by_features(shape):
    x = drawn_and_reference(shape[0], 2, shape[1])[0]
    assert vendi_score(x) == pytest.approx(vendi.score_dual(x), rel=1e-6)
    assert vendi_score(x) == pytest.approx(vendi.score_K(x @ x.T, normalize=True), rel=1e-6)


def test_k_orthogonal_images_count_k_however_often_each_is_repeated():
    assert vendi_score(np.repeat(np.eye(6), 5, axis=0)) == pytest.approx(6)
    assert vendi_score(np.repeat([[1.0, 2.0, 3.0]], 9, axis=0)) == pytest.approx(1)


def test_zero_features_are_refused():
    with pytest.raises(ValueError, match=r"row of zeros \(number 1\)"):
        vendi_score(np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_diversity_within_a_prompt_is_the_mean_over_its_pairs():
    x = np.random.default_rng(0).normal(size=(6, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    groups = ["cat", "dog", "cat", "cat", "dog", "alone"]
    pairs = [(0, 2), (0, 3), (2, 3)]
    diversity = intra_prompt_diversity(x, groups)
    assert set(diversity) == {"cat", "dog"}
    assert diversity["cat"] == pytest.approx(np.mean([1 - unit[i] @ unit[j] for i, j in pairs]))
    assert diversity["dog"] == pytest.approx(1 - unit[1] @ unit[4])


def test_a_model_that_ignores_its_seed_has_no_diversity_within_prompts():
    diversity = intra_prompt_diversity(np.repeat(np.random.default_rng(1).normal(size=(3, 8)), 4, axis=0), list("aaaabbbbcccc"))
    assert all(value == pytest.approx(0, abs=1e-12) for value in diversity.values())


def test_groups_that_give_no_pair_are_named():
    with pytest.raises(ValueError, match="one image for every prompt"):
        intra_prompt_diversity(np.eye(3), ["a", "b", "c"])
    with pytest.raises(ValueError, match="groups: got 2 for 3 images"):
        intra_prompt_diversity(np.eye(3), ["a", "b"])
