"""Pictures as they come to be."""

import threading
import time

import pytest
import torch
from diffusers import DDIMScheduler

from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import network_of
from gendistill.samplers.offload.streaming import PicturesDone, StepDone, streamed
from gendistill.samplers.tasks import Task

PROMPTS, SEEDS = ["emoji of animals", "a red apple", "food"], [3, 1, 4]


@pytest.fixture
def sampler(teacher):
    teacher.pipeline.scheduler = DDIMScheduler.from_config(teacher.pipeline.scheduler.config, timestep_spacing="trailing")
    return FewStepSampler(teacher.pipeline)


def test_every_step_is_told_and_then_the_pictures(sampler):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "batch_size": 2}
    events = list(sampler.events(PROMPTS, SEEDS, **settings))
    told = [(event.first, getattr(event, "step", None)) for event in events]
    assert told == [(0, 1), (0, 2), (0, 3), (0, None), (2, 1), (2, 2), (2, 3), (2, None)]
    drawn = torch.cat([event.pictures for event in events if isinstance(event, PicturesDone)])
    assert torch.equal(drawn, torch.cat(list(sampler.pictures(PROMPTS, SEEDS, **settings))))


def test_drawing_ends_where_nobody_listens(sampler):
    calls, before = [], threading.active_count()
    network_of(sampler.pipeline).register_forward_hook(lambda *_: calls.append(1))
    events = sampler.events(["food"], [0], num_inference_steps=40, guidance_scale=1.0)
    assert isinstance(next(events), StepDone)
    events.close()
    assert len(calls) < 10
    assert threading.active_count() == before


def test_an_error_of_the_drawing_reaches_who_listens(sampler):
    with pytest.raises(ValueError, match=r"^strength 0.1: of 2 steps it leaves none"):
        list(sampler.events(["food"], [0], num_inference_steps=2, task=Task(pictures=torch.zeros(1, 3, 32, 32), strength=0.1)))


def test_a_drawing_does_not_run_ahead_of_who_looks():
    made = []

    def draw(tell):
        for number in range(50):
            made.append(number)
            tell(number)

    events = streamed(draw)
    next(events)
    time.sleep(0.3)
    assert len(made) <= 5
    assert list(events) == list(range(1, 50))
