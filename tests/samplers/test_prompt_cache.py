"""Prompts are encoded once, and memory does not grow with their number."""

import pytest
import torch

from gendistill.samplers.prompt_cache import PromptCache

CPU, ROW = torch.device("cpu"), 4 * 10


@pytest.fixture
def encoded():
    return []


@pytest.fixture
def cache(encoded):
    def encode(prompts):
        encoded.extend(prompts)
        return {"of": torch.tensor([[float(prompt)] * 10 for prompt in prompts])}

    return PromptCache(encode, max_bytes=3 * ROW)


def test_a_prompt_is_encoded_once_and_comes_in_the_order_asked(cache, encoded):
    assert cache.conditions(["2", "1", "2"], CPU)["of"][:, 0].tolist() == [2, 1, 2]
    assert cache.conditions(["1", "3"], CPU)["of"][:, 0].tolist() == [1, 3]
    assert encoded == ["1", "2", "3"]


def test_what_nobody_asked_for_the_longest_leaves_first(cache, encoded):
    for prompt in "1", "2", "3", "1", "4":
        cache.conditions([prompt], CPU)
    assert "1" in cache
    assert "2" not in cache
    assert cache.conditions(["1"], CPU)["of"][0, 0] == 1
    assert encoded == ["1", "2", "3", "4"]


def test_a_batch_larger_than_the_cache_is_whole_and_holds_no_more(cache):
    prompts = [str(number) for number in range(300)]
    assert cache.conditions(prompts, CPU)["of"][:, 0].tolist() == list(range(300))
    assert sum(prompt in cache for prompt in prompts) == 3
    cache.clear()
    assert cache.conditions(["7"], CPU)["of"][0, 0] == 7
    assert sum(prompt in cache for prompt in prompts) == 1
