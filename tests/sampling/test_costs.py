"""What tiny-sd costs, for real."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel

from gendistill.metrics.cost.components import flops_by_component
from gendistill.samplers import FewStepSampler, components_of
from gendistill.samplers.families import network_of
from gendistill.sampling.costs import measure_costs

PROMPTS = ["google emoji of food", "twitter emoji of animals"]


@pytest.fixture(scope="module")
def sampler():
    sampler = FewStepSampler.from_pretrained("assets/tiny-sd")
    sampler.pipeline.scheduler = DDIMScheduler.from_config(sampler.pipeline.scheduler.config)
    return sampler


@pytest.fixture(scope="module")
def costs(sampler):
    """costs(steps, guidance_scale), measured once."""
    measured = {}

    def of(steps, scale):
        if (steps, scale) not in measured:
            measured[steps, scale] = measure_costs(
                sampler, PROMPTS, steps=steps, guidance_scale=scale, batch_sizes=[1, 3], repeats=2, energy_seconds=0
            )
        return measured[steps, scale]

    return of


def test_four_steps_are_four_network_calls_and_guidance_doubles_them(costs):
    assert costs(4, 1.0).network_calls == 4
    assert costs(4, 3.0).network_calls == 8
    assert costs(4, 3.0).components["network"].calls == 4


def test_network_calls_are_what_the_scheduler_makes_of_the_steps_and_not_the_steps(sampler):
    usual = sampler.pipeline.scheduler
    sampler.pipeline.scheduler = FewStepSampler.from_pretrained("assets/tiny-sd").pipeline.scheduler
    measured = measure_costs(sampler, PROMPTS, steps=4, guidance_scale=1, batch_sizes=[1], repeats=1, energy_seconds=0)
    sampler.pipeline.scheduler = usual
    assert measured.setting["scheduler"] == "PNDMScheduler"
    assert measured.network_calls == 5  # PLMS calls the network twice in its first step


def test_operations_of_the_network_scale_with_the_steps_and_those_of_the_decoder_do_not(costs):
    few, many, guided = costs(2, 1.0), costs(4, 1.0), costs(4, 3.0)
    assert many.components["network"].flops == 2 * few.components["network"].flops
    assert guided.components["network"].flops == 2 * many.components["network"].flops
    assert few.components["decoder"].flops == many.components["decoder"].flops > 0
    assert many.flops == sum(component.flops for component in many.components.values())


def test_one_call_of_the_network_counts_at_least_two_operations_a_weight_and_pixel(sampler, costs):
    """A lower bound by hand: the first and the last convolution at full resolution, 8x8."""
    unet = network_of(sampler.pipeline)
    ends = sum(2 * 64 * conv.weight.numel() for conv in (unet.conv_in, unet.conv_out))
    one = costs(2, 1.0).components["network"].flops / 2
    assert ends < one < 2 * 64 * sum(p.numel() for p in unet.parameters())


def test_operations_are_the_same_whichever_kernel_computes_the_attention(sampler, costs):
    """As one fused kernel, or as the matrix products that torch's own counter knows."""

    def generate():
        fresh = FewStepSampler(sampler.pipeline)
        list(fresh.images(PROMPTS[:1], [0], num_inference_steps=2, guidance_scale=1))

    with sdpa_kernel(SDPBackend.MATH):
        flops = flops_by_component(generate, components_of(sampler.pipeline))
    assert flops["network"] == costs(2, 1.0).components["network"].flops
    assert flops["text_encoder"] == costs(2, 1.0).components["text_encoder"].flops


def test_every_image_pays_for_its_text_and_guidance_for_the_empty_one(costs):
    assert costs(4, 1.0).components["text_encoder"].samples == 1
    assert costs(4, 3.0).components["text_encoder"].samples == 2
    assert costs(4, 1.0).components["text_encoder"].seconds > 0


def test_prompts_come_again_with_a_number_so_that_a_large_batch_encodes_each(sampler):
    seen = []
    hook = sampler.pipeline.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].unique(dim=0).shape[0]))
    try:
        measure_costs(sampler, PROMPTS, steps=1, guidance_scale=1, batch_sizes=[1, 5], repeats=1, energy_seconds=0)
    finally:
        hook.remove()
    assert max(seen) == 5


def test_the_split_sums_to_its_total_and_the_network_has_most_of_it(costs):
    measured = costs(4, 3.0)
    parts = {name: component.seconds for name, component in measured.components.items()}
    assert sum(parts.values()) <= measured.split_seconds
    assert max(parts, key=parts.get) == "network"
    assert measured.split_seconds < 3 * measured.latency


def test_costs_name_the_parts_their_parameters_and_how_images_were_sampled(sampler, costs):
    measured = costs(4, 3.0)
    assert list(measured.components) == ["text_encoder", "network", "decoder"]
    parts = (sampler.pipeline.text_encoder, network_of(sampler.pipeline), sampler.pipeline.vae)
    assert measured.parameters == sum(p.numel() for part in parts for p in part.parameters())
    assert measured.setting["num_inference_steps"] == 4
    assert measured.setting["guidance_scale"] == 3.0
    assert measured.setting["text"] == "every prompt is encoded anew"
    assert [batch.batch_size for batch in measured.batches] == [1, 3]
    assert json.loads(json.dumps(measured.to_dict()))["setting"] == measured.setting


def test_measuring_changes_no_image_and_leaves_the_cache_of_the_sampler(sampler):
    def generate():
        return torch.cat(list(sampler.images(PROMPTS, [0, 1], num_inference_steps=2, guidance_scale=2)))

    before = generate()
    measure_costs(sampler, ["something else"], steps=1, batch_sizes=[1], repeats=1, energy_seconds=0)
    assert torch.equal(generate(), before)
    assert all(prompt in sampler._encoded for prompt in PROMPTS)
    assert "something else" not in sampler._encoded


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("sdxl", ["text_encoder", "text_encoder_2", "network", "decoder"]),
        ("classes", ["network"]),
    ],
)
def test_other_families_have_the_parts_that_they_have(family_folder, family, parts):
    sampler = FewStepSampler.from_pretrained(family_folder(family))
    assert list(components_of(sampler.pipeline)) == parts
    measured = measure_costs(
        sampler, sampler.own_prompts or PROMPTS, steps=2, guidance_scale=1, batch_sizes=[2], repeats=1, energy_seconds=0
    )
    assert measured.components["network"].calls >= 2
    assert min(component.flops for component in measured.components.values()) > 0


def test_no_prompts_are_refused(sampler):
    with pytest.raises(ValueError, match="prompts: got none"):
        measure_costs(sampler, [])
