"""A sampler under a ceiling of memory: it steps down through every placement, and the images stay what they were."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler
from tiny_add_ons import save_control

from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import network_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.offload.live_memory import LiveBytes, bytes_of
from gendistill.samplers.offload.memory_model import PLACEMENTS
from gendistill.samplers.offload.placed import PlacedSampler
from gendistill.samplers.offload.placing import Placing, networks_of
from gendistill.samplers.tasks import Task

PROMPTS, SEEDS = ["emoji of animals", "a red apple"], [3, 1]


class Ceiling(LiveBytes):
    """Memory that ends: what is computed, and the weights that are not away, stay below it."""

    def __init__(self, pipeline, ceiling=float("inf")):
        super().__init__(device="cpu")
        self.ceiling, self.most, self.taken = ceiling, 0, 0
        modules = [module for network in networks_of(pipeline).values() for module in network.modules()]
        self.owners = [module._parameters for module in modules if module._parameters]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = super().__torch_dispatch__(func, types, args, kwargs)
        weights = [of for owner in self.owners for of in owner.values() if of is not None and not of.is_meta]
        present = [of for of in weights if of.untyped_storage() not in self.counted]
        taken = self.live + sum(of.numel() * of.element_size() for of in present)
        grown, self.taken, self.most = taken > self.taken, taken, max(self.most, taken)
        if grown and taken > self.ceiling:
            raise torch.OutOfMemoryError("The artificial device is out of memory. Tried to allocate more.")
        return made


@pytest.fixture
def opened(tiny_folder):
    """opened(): the tiny pipeline, all of it in memory."""

    def open_it():
        pipeline = open_pipeline(tiny_folder)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        return pipeline

    return open_it


@pytest.fixture
def pipeline(opened):
    return opened()


def generate(sampler, **given):
    generated = sampler.images(PROMPTS, SEEDS, num_inference_steps=1, guidance_scale=3.0, **given)
    return torch.cat([batch.clone() for batch in generated])


def placed(pipeline, told=None, memory=float("inf")):
    return PlacedSampler(pipeline, device="cpu", memory=memory, report=(told if told is not None else []).append)


def test_every_placement_samples_the_same_images_in_less_memory(pipeline):
    plain = generate(FewStepSampler(pipeline))
    sampler, peaks = placed(pipeline), []
    for placement in PLACEMENTS:
        sampler._placing.apply(placement)
        sampler.cold()
        with Ceiling(pipeline) as seen:
            generated = generate(sampler)
        torch.testing.assert_close(generated, plain, atol=1e-4, rtol=0)
        peaks.append(seen.most)
    assert all(after <= before for before, after in pairwise(peaks))
    assert peaks[1] < peaks[0]  # the text encoder
    assert peaks[4] < peaks[3] < peaks[2]  # one network, one layer


@pytest.mark.parametrize("name", ["sd3", "flux2"])
def test_networks_whose_buffers_are_read_between_calls_are_placed_too(family_folder, name):
    """Positions of Stable Diffusion 3, and the statistics of Flux.2's latents."""
    pipeline = open_pipeline(family_folder(name))
    plain, sampler = generate(FewStepSampler(pipeline), size=(32, 32)), placed(pipeline)
    for placement in PLACEMENTS[-2:]:
        sampler._placing.apply(placement)
        sampler.cold()
        torch.testing.assert_close(generate(sampler, size=(32, 32)), plain, atol=1e-4, rtol=0)


def test_under_a_falling_ceiling_it_steps_down_through_every_placement_and_goes_on(pipeline):
    plain, told = generate(FewStepSampler(pipeline)), []
    sampler = placed(pipeline, told)
    everything = bytes_of(networks_of(pipeline).values())
    names = []
    with Ceiling(pipeline) as seen:
        for share in (4, 1, 0.9, 0.8, 0.6, 0.3):
            seen.ceiling = share * everything
            try:
                torch.testing.assert_close(generate(sampler), plain, atol=1e-4, rtol=0)
            except ValueError:
                break
            names.append(sampler.placement.name)
    assert list(dict.fromkeys(names))[-1] == PLACEMENTS[-1].name
    for placement in PLACEMENTS[1:]:
        assert f"placement {placement.name}: out of memory" in told


def test_the_last_placement_samples_fewer_images_at_once_and_then_says_what_would_help(pipeline):
    plain, told = generate(FewStepSampler(pipeline)), []
    sampler = placed(pipeline, told, memory=0)
    with Ceiling(pipeline) as seen:
        generate(sampler)
        seen.most = 0
        generate(sampler)
        seen.ceiling = 0.8 * seen.most
        torch.testing.assert_close(generate(sampler), plain, atol=1e-4, rtol=0)
        assert "out of memory: batch size 1 from now on" in told
        seen.ceiling = 0
        with pytest.raises(ValueError, match="one image of 32x32 does not fit"):
            generate(sampler)


def test_the_placement_is_the_fastest_that_is_predicted_to_fit(opened, pipeline):
    sampler = placed(pipeline)
    generate(sampler)
    needs = next(iter(sampler._needs.values()))
    for placement in PLACEMENTS:
        told = []
        sampler = placed(opened(), told, memory=needs.peak(placement))
        generate(sampler)
        assert needs.peak(sampler.placement) <= needs.peak(placement)
        assert len(told) == 1
        assert "predicted" in told[0]


def test_a_control_network_takes_its_turn_with_the_network(opened, tmp_path):
    pipeline, folder = opened(), tmp_path / "control"
    save_control(network_of(pipeline), folder)
    task = Task(controlnet=ControlNetModel.from_pretrained(folder), controls=torch.rand(2, 3, 32, 32))
    plain = generate(FewStepSampler(pipeline), task=task)
    for placement in PLACEMENTS:
        sampler, task = placed(opened()), replace(task, controlnet=ControlNetModel.from_pretrained(folder))
        sampler._placing.apply(placement)
        torch.testing.assert_close(generate(sampler, task=task), plain, atol=1e-4, rtol=0)


def test_an_error_of_another_kind_is_not_taken_for_the_end_of_memory(pipeline):
    sampler = placed(pipeline)
    with pytest.raises(ValueError, match="strength"):
        generate(sampler, task=Task(images=torch.rand(2, 3, 32, 32), strength=0.1))


def test_networks_that_are_away_leave_nothing_behind(pipeline):
    placing = Placing(pipeline, "cpu")
    placing.apply(PLACEMENTS[3])
    placing.load("vae")
    assert all(of.is_meta for of in network_of(pipeline).parameters())
    assert all(of.is_meta for of in pipeline.text_encoder.parameters())
    placing.load("unet")
    assert not any(of.is_meta for of in (*network_of(pipeline).parameters(), *network_of(pipeline).buffers()))
    assert all(of.is_meta for of in pipeline.vae.parameters())


def test_a_vae_that_has_encoded_an_image_is_away_while_the_network_works(pipeline):
    sampler, away = placed(pipeline), []
    sampler._placing.apply(PLACEMENTS[3])
    network_of(pipeline).register_forward_hook(lambda *_: away.append(next(pipeline.vae.parameters()).is_meta))
    generate(sampler, task=Task(images=torch.rand(2, 3, 32, 32), strength=1.0))
    assert away
    assert all(away)
