"""What a family says of itself is true of its networks."""

import inspect

import pytest
import torch
from tiny_families import TINY

from gendistill.samplers.families import FAMILIES, family_called, family_of, network_of, register
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.samplers.loading import open_pipeline


@pytest.mark.parametrize("name", TINY)
def test_example_inputs_are_what_a_network_takes_and_nothing_is_computed(family_folder, name):
    pipeline = open_pipeline(family_folder(name))
    family, network = family_of(pipeline), network_of(pipeline).to("meta")
    edge = network.config.get("sample_size", 8)
    size = (edge, edge * (2 if family.texts else 1)) if isinstance(edge, int) else tuple(edge)
    inputs = family.example_inputs(network.config, 2, size, torch.float32)
    channels, _ = family.channels(network.config)
    assert network(**inputs).sample.is_meta
    assert inputs.keys() <= set(inspect.signature(network.forward).parameters)
    t = torch.empty(2, device="meta")
    x_t = torch.empty(2, channels, *size, device="meta")
    conditioning = family.example_conditioning(network.config, 2, torch.float32)
    output = family.call(network, x_t, t, conditioning)
    assert output.is_meta
    assert output.shape == x_t.shape


@pytest.mark.parametrize("name", TINY)
def test_layers_that_a_lora_adapts_are_in_the_network_of_every_family_that_takes_one(family_folder, name):
    pipeline = open_pipeline(family_folder(name))
    family, modules = family_of(pipeline), [path for path, _ in network_of(pipeline).named_modules()]
    assert family.lora == bool(family.lora_targets) == hasattr(pipeline, "load_lora_weights")
    for target in family.lora_targets:
        assert any(f".{path}".endswith(f".{target}") for path in modules), target


def test_a_pipeline_of_no_family_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match=r"family KolorsPipeline is not supported; expects StableDiffusionPipeline, Stable"):
        family_called("KolorsPipeline")


def test_the_family_that_was_registered_last_is_asked_first(family_folder):
    class Mine(StableDiffusion):
        pass

    mine = Mine()
    register(mine)
    try:
        assert family_called("StableDiffusionPipeline") is mine
        assert family_of(open_pipeline(family_folder("sd1"))) is mine
        assert family_of(open_pipeline(family_folder("unconditional"))) is not mine
    finally:
        FAMILIES.remove(mine)
