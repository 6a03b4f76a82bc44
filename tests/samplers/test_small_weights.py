"""Weights of 8 and 4 bits: the numbers are those of the papers, the memory is as promised, images stay nearly the same."""

import importlib.util

import pytest
import torch
from scipy.stats import norm
from tiny_add_ons import save_lora
from torch import nn

from gendistill.diffusion.int8_training import rounded_weight
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import network_of
from gendistill.samplers.offload.live_memory import bytes_of
from gendistill.samplers.offload.memory_model import PLACEMENTS, MetaNetworks
from gendistill.samplers.offload.placed import PlacedSampler
from gendistill.samplers.quantization.quantize import QUANTIZATIONS
from gendistill.samplers.quantization.small_weights import BLOCK, KINDS, NF4, quantize_weights, weight_quantization
from gendistill.sampling.placement_plan import plan_sampling

FAMILIES = ("sd1", "sd2", "sdxl", "unconditional", "classes")


def kept(layer, kind):
    quantize_weights(nn.ModuleList([layer]), kind)
    return layer


def generate(sampler):
    prompts = sampler.own_prompts or ["food", "animals"]
    generated = sampler.images(prompts[:2], range(len(prompts[:2])), num_inference_steps=2, guidance_scale=1)
    return torch.cat(list(generated))


def test_the_levels_of_4_bits_are_quantiles_of_a_normal_distribution():
    """QLoRA, equation 4: eight above zero, zero, seven below, divided by the largest."""
    ends = 1 - 0.5 * (1 / 32 + 1 / 30)
    above = [norm.ppf(ends + (0.5 - ends) * step / 8) for step in range(8)]
    below = [-norm.ppf(ends + (0.5 - ends) * step / 7) for step in range(7)]
    levels = torch.tensor(sorted([*above, 0.0, *below])) / max(above)
    torch.testing.assert_close(torch.tensor(NF4, dtype=levels.dtype), levels, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(10, 24), (6, 5, 3, 3), (2, 33)])
def test_each_weight_of_4_bits_is_the_nearest_level_of_its_block(shape, generator):
    weight = torch.randn(shape, generator=generator)
    layer = nn.Conv2d(shape[1], shape[0], shape[2]) if len(shape) == 4 else nn.Linear(shape[1], shape[0])
    layer.weight.data = weight
    made = kept(layer, "nf4-weights").weight.flatten()
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        levels = torch.tensor(NF4) * block.abs().max()
        nearest = levels[(block[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(made[start : start + BLOCK], nearest)


def test_weights_of_8_bits_are_those_that_a_student_learns_with(generator):
    layer = nn.Conv2d(8, 6, 3)
    wanted = rounded_weight(layer.weight)
    torch.testing.assert_close(kept(layer, "int8-weights").weight, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_small_numbers_are_not_lost_in_half_precision(kind, generator):
    weight = torch.randn(32, 64, generator=generator) * 1e-3
    layer = nn.Linear(64, 32).half()
    layer.weight.data = weight.half()
    error = (kept(layer, kind).weight.float() - weight).norm() / weight.norm()
    assert error < {"int8-weights": 0.01, "nf4-weights": 0.11}[kind]


@pytest.mark.parametrize(("kind", "bits"), [("int8-weights", 8), ("nf4-weights", 4 + 16 / BLOCK)])
def test_memory_is_what_is_promised_and_what_is_planned(kind, bits):
    layer = nn.Linear(640, 1280, bias=False).half()
    assert bytes_of([kept(layer, kind).parametrizations]) == pytest.approx(640 * 1280 * bits / 8, rel=0.005)
    networks = MetaNetworks.from_configs("sd1")
    whole = bytes_of([networks.network.half()])
    quantize_weights(networks.network, kind)
    assert bytes_of([networks.network]) < (bits / 16 + 0.04) * whole  # what reads the time, the first and last layer stay


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_images_of_every_family_are_nearly_the_same_ones(family_folder, family, kind):
    folder = family_folder(family)
    plain, small = FewStepSampler.from_pretrained(folder), FewStepSampler.from_pretrained(folder, quantization=kind)
    assert weight_quantization(network_of(small.pipeline)) == kind
    assert weight_quantization(network_of(plain.pipeline)) is None
    assert small.weights_hash != plain.weights_hash
    difference = (generate(plain) - generate(small)).abs().mean()
    assert 0 < difference < {"int8-weights": 0.01, "nf4-weights": 0.1}[kind]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_images_of_every_family_are_nearly_the_same_ones_in_half_precision(family_folder, family):
    folder = family_folder(family)
    half = FewStepSampler.from_pretrained(folder, dtype=torch.float16)
    assert network_of(half.pipeline).dtype is torch.float16
    assert 0 < (generate(FewStepSampler.from_pretrained(folder)) - generate(half)).abs().mean() < 0.005


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_placement_samples_the_same_images(tiny_folder, kind):
    sampler = FewStepSampler.from_pretrained(tiny_folder, quantization=kind)
    plain = generate(sampler)
    placed = PlacedSampler(sampler.pipeline, device="cpu", memory=float("inf"))
    assert bytes_of([placed._networks.network]) == bytes_of([network_of(sampler.pipeline)])
    for placement in PLACEMENTS:
        placed._placing.apply(placement)
        torch.testing.assert_close(generate(placed), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_lora_goes_on_top(tiny_folder, tmp_path, kind):
    plain, small = FewStepSampler.from_pretrained(tiny_folder), FewStepSampler.from_pretrained(tiny_folder, quantization=kind)
    save_lora(network_of(plain.pipeline), tmp_path)
    before = [generate(sampler) for sampler in (plain, small)]
    for sampler in (plain, small):
        sampler.pipeline.load_lora_weights(tmp_path, adapter_name="style")
    after = [generate(sampler) for sampler in (plain, small)]
    assert (after[0] - after[1]).abs().mean() < 2 * (before[0] - before[1]).abs().mean()
    assert (after[1] - before[1]).abs().mean() > 0.01


def test_a_plan_tells_which_weights_let_a_faster_placement_fit(tiny_folder):
    plan = plan_sampling("sd1", memory=2.8)
    assert plan.fits[2.8] == "text-encoder-offload"
    assert plan.fits_smaller["int8-weights"][2.8] == "all"
    assert any("2.8 GiB: --quantization int8-weights fits all" in sentence for sentence in plan.sentences())
    assert not plan_sampling(str(tiny_folder), memory=6).fits_smaller
    small = plan_sampling(str(tiny_folder), quantization="nf4-weights")
    assert small.needs.network < plan_sampling(str(tiny_folder)).needs.network
    with pytest.raises(ValueError, match="quantization int8: expects none, int8-weights or nf4-weights"):
        plan_sampling(str(tiny_folder), quantization="int8")


def test_what_cannot_be_is_one_sentence(tiny_folder, monkeypatch):
    with pytest.raises(ValueError, match="quantization fp4: expects one of none, int8, int8-weights, nf4-weights"):
        FewStepSampler.from_pretrained(tiny_folder, quantization="fp4")
    with pytest.raises(ValueError, match="quantization int8: computes on a CPU or a CUDA GPU, not on mps"):
        FewStepSampler.from_pretrained(tiny_folder, quantization="int8", device="mps")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"quantization int8: needs torchao on a GPU; pip install 'gendistill\[torchao\]'"):
        FewStepSampler.from_pretrained(tiny_folder, quantization="int8", device="cuda")


def test_a_sampler_knows_its_quantization(tiny_folder):
    samplers = {kind: FewStepSampler.from_pretrained(tiny_folder, quantization=kind) for kind in QUANTIZATIONS}
    assert {kind: sampler.quantization for kind, sampler in samplers.items()} == {kind: kind for kind in QUANTIZATIONS}
    assert "quantization" not in samplers["none"].setting(4, 1.0)
    assert samplers["int8"].setting(4, 1.0)["quantization"] == "int8"
