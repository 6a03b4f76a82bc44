import json
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import torch

from gendistill.metrics.audit.robustness import KINDS, NEIGHBOURS, perturbed, robustness

PROMPTS = ["google emoji of waving hand sign", "twitter emoji of red apple", "a cat", "", "Grinning Face"]


def edits(a, b):
    """Damerau-Levenshtein distance (adjacent swaps count as one)."""
    d = {(i, j): i + j for i in range(len(a) + 1) for j in range(len(b) + 1) if not i or not j}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "upper"])
def test_a_mistake_is_one_edit_in_one_long_word(kind, held_out):
    prompts = PROMPTS + [caption["name"] for caption in held_out[1][:60]]
    for plain, changed in zip(prompts, perturbed(prompts, kind, seed=1), strict=True):
        if plain in ("a cat", ""):
            assert changed == plain
            continue
        assert edits(plain, changed) == 1
        assert len(changed) - len(plain) in {"drop": [-1], "double": [1], "typo": [-1, 0, 1]}.get(kind, [0])
        differing = [a for a, b in zip(plain.split(), changed.split(), strict=True) if a != b]
        assert len(differing) == 1
        assert len(differing[0]) >= 4


def test_a_prompt_has_the_same_mistake_with_whatever_comes_after_it_and_another_with_another_seed():
    prompts = [f"{p} {number}" for number in range(10) for p in PROMPTS[:2]]
    assert perturbed(prompts, "typo", 3)[:4] == perturbed(prompts[:4], "typo", 3)
    assert perturbed(prompts, "typo", 3) != perturbed(prompts, "typo", 4)
    assert len(set(perturbed(["waving hand sign"] * 30, "typo"))) > 10


def test_typos_are_of_all_four_kinds():
    words = perturbed(["strawberry"] * 200, "typo")
    assert {len(w) for w in words} == {9, 10, 11}
    assert {sorted(w) == sorted("strawberry") for w in words if len(w) == 10} == {True, False}


def test_a_neighbour_keeps_the_case_and_is_beside_the_letter():
    assert all(letter in NEIGHBOURS[other] for letter, near in NEIGHBOURS.items() for other in near)
    assert set(NEIGHBOURS["g"]) == set("tyfhvb")
    for seed in range(20):
        changed = perturbed(["FACE"], "neighbour", seed)[0]
        assert changed.isupper()
        assert len(changed) == 4


def test_capitals_change_all_letters_and_no_lower_casing_tokenizer_sees_them(scorer):
    changed = perturbed(PROMPTS, "upper")
    assert changed[1] == "TWITTER EMOJI OF RED APPLE"
    assert torch.equal(scorer.tokenizer(changed), scorer.tokenizer(PROMPTS))


def test_a_student_that_drops_more_is_found_with_the_prompts_where_it_does():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(60, 8, 200), rng.normal(58, 8, 200)
    lost = rng.normal(5, 3, 200)
    extra = np.where(np.arange(200) == 17, 60, rng.normal(2, 3, 200))
    result = robustness(teacher, teacher - lost, student, student - lost - extra, kind="typo")
    assert result.excess == pytest.approx(extra.mean())
    assert result.student.drop == pytest.approx((lost + extra).mean())
    assert result.p_value < 0.001
    assert result.worst[0] == 17
    assert "more" in result.describe()
    expected = scipy.stats.ttest_1samp(extra, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    json.dumps(asdict(result), allow_nan=False)


def test_students_that_drop_as_the_teacher_does_are_seldom_called_worse():
    rng = np.random.default_rng(1)
    p = [robustness(*rng.normal(60, 8, (4, 80)), permutations=499).p_value for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.06)
    assert np.mean(p) == pytest.approx(0.5, abs=0.1)


def test_perturbations_that_change_nothing_drop_nothing():
    teacher, student = torch.linspace(50, 70, 10), torch.linspace(40, 60, 10)
    result = robustness(teacher, teacher, student, student, kind="upper")
    assert (result.excess, result.p_value, result.worst) == (0, 1, ())
    assert "do not differ significantly" in result.describe()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="'typos', expects one of typo, swap"):
        perturbed(PROMPTS, "typos")
    with pytest.raises(ValueError, match="four times"):
        robustness(np.ones(3), np.ones(3), np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="NaN"):
        robustness(np.ones(3), np.ones(3), np.ones(3), np.array([1, 2, np.nan]))
