"""Whoever asks is answered once: in order, together where that is the same, refused where there is no room."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gendistill.serve.image_request import ImageRequest
from gendistill.serve.worker import BusyError, Worker


def request(prompt="a", count=1, seed=0, steps=4, guidance_scale=1.0):
    return ImageRequest("student", prompt, count, seed, steps, guidance_scale, (32, 32))


def generated(requests):
    """Images of one pixel whose number is their seed."""
    return torch.tensor([of.seed + k for of in requests for k in range(of.count)]).reshape(-1, 1, 1, 1)


@pytest.fixture
def worker():
    """worker(sample, ...), ended after the test."""
    made = []

    def make(generate=generated, **settings):
        made.append(Worker(generate, **settings))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def held(worker):
    """held(...): a worker that samples its first request until an event is set, that request's future, the event, the batches."""

    def make(**settings):
        may_draw, batches = threading.Event(), []

        def generate(requests):
            may_draw.wait(10)
            batches.append(requests)
            return generated(requests)

        generating = worker(generate, **settings)
        first = generating.submit(request("a", seed=5))
        while generating.waiting:
            time.sleep(0.01)
        return generating, first, may_draw, batches

    return make


def test_everyone_gets_their_own_images(worker):
    generating = worker(max_waiting=1000)
    with ThreadPoolExecutor(8) as people:
        futures = list(people.map(lambda seed: generating.submit(request(seed=10 * seed, count=1 + seed % 3)), range(200)))
    for seed, future in enumerate(futures):
        assert future.result(10).images.flatten().tolist() == [10 * seed + k for k in range(1 + seed % 3)]


def test_what_goes_together_is_sampled_together_and_no_more_than_a_batch_holds(held):
    generating, first, may_draw, batches = held(max_images=4)
    others = [generating.submit(request(steps=steps, count=count)) for steps, count in [(4, 2), (8, 1), (4, 2), (4, 1), (8, 1)]]
    may_draw.set()
    for future in [first, *others]:
        future.result(10)
    generated = [(requests[0].steps, sum(of.count for of in requests)) for requests in batches]
    assert generated == [(4, 1), (4, 4), (8, 2), (4, 1)]


def test_a_full_queue_refuses_and_goes_on(held):
    generating, first, may_draw, _ = held(max_waiting=2)
    waiting = [generating.submit(request(seed=seed)) for seed in (1, 2)]
    with pytest.raises(BusyError, match="2 requests wait already"):
        generating.submit(request())
    may_draw.set()
    assert [future.result(10).images.item() for future in [first, *waiting]] == [5, 1, 2]
    assert generating.submit(request(seed=7)).result(10).images.item() == 7


def test_an_error_reaches_who_asked_and_nobody_else(worker):
    def generate(requests):
        if requests[0].prompt == "bad":
            raise ValueError("no such thing")
        return generated(requests)

    generating = worker(generate)
    with pytest.raises(ValueError, match="no such thing"):
        generating.submit(request("bad")).result(10)
    assert generating.submit(request(seed=3)).result(10).images.item() == 3


def test_who_went_away_is_not_sampled_for(held):
    generating, first, may_draw, batches = held()
    gone, last = generating.submit(request("gone")), generating.submit(request("c"))
    assert gone.cancel()
    may_draw.set()
    first.result(10)
    last.result(10)
    assert [of.prompt for requests in batches for of in requests] == ["a", "c"]


def test_the_end_finishes_what_is_sampled_and_refuses_the_rest(held):
    generating, first, may_draw, _ = held()
    second = generating.submit(request())
    threading.Timer(0.1, may_draw.set).start()
    generating.end()
    assert first.result(0).images.item() == 5
    with pytest.raises(BusyError, match="ended before"):
        second.result(0)
    with pytest.raises(BusyError, match="about to end"):
        generating.submit(request())
