"""A pipeline on the meta device has the networks that the opened one has, without a number in them."""

import pytest
from torch import nn

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.offload.memory_model import MetaNetworks
from gendistill.samplers.offload.meta_pipeline import meta_network_like, meta_pipeline


def shapes(network):
    return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}


@pytest.mark.parametrize("family", ["sd1", "sdxl", "unconditional", "classes"])
def test_networks_family_and_scheduler_are_those_of_the_opened_pipeline(family_folder, family):
    folder = family_folder(family)
    opened, found = open_pipeline(folder), meta_pipeline(folder)
    assert family_of(found) is family_of(opened)
    assert found.scheduler.config == opened.scheduler.config
    for name, part in opened.components.items():
        if isinstance(part, nn.Module):
            assert shapes(getattr(found, name)) == shapes(part)
            assert all(weight.is_meta for weight in getattr(found, name).parameters())


def test_a_network_on_the_meta_device_may_differ_in_its_config(tiny_folder):
    network = network_of(open_pipeline(tiny_folder))
    assert shapes(meta_network_like(network)) == shapes(network)
    embedded = meta_network_like(network, time_cond_proj_dim=8)
    assert shapes(embedded).keys() - shapes(network).keys() == {"time_embedding.cond_proj.weight"}
    assert not any(weight.requires_grad or not weight.is_meta for weight in embedded.parameters())


def test_a_model_without_local_configs_is_one_sentence(family_folder, tmp_path):
    with pytest.raises(ValueError, match=r"its configs are on the hub; expects a local one, or flux-dev, .*, sdxl"):
        meta_pipeline("someone/a-model")
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        meta_pipeline(tmp_path)
    with pytest.raises(ValueError, match="expects a pipeline with a VAE"):
        MetaNetworks.from_configs(family_folder("unconditional"))
