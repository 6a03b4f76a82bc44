"""A generator behind the door that all images come through."""

import copy

import numpy as np
import pytest
import random_gans
import torch
from PIL import Image
from random_gans import CLASSES
from torch import nn

from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.sampling.costs import measure_costs
from gendistill.sampling.load import gan_folder, input_prompts, open_sampler

PROMPTS = [CLASSES[3], CLASSES[0], "19", CLASSES[3], CLASSES[7]]
SEEDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def sampler(gans):
    return open_sampler(gans["teacher"])


def generate(sampler, prompts=PROMPTS, seeds=SEEDS, **arguments):
    return torch.cat(list(sampler.images(prompts, seeds, **arguments)))


def test_images_that_are_not_finite_are_refused(gans):
    sampler = open_sampler(gans["teacher"])
    next(sampler.generator.network.parameters()).data[:] = torch.nan
    with pytest.raises(ValueError, match=f"the images of a {sampler.kind} have values that are not finite; expects a model"):
        generate(sampler)


@pytest.mark.parametrize("name", ["teacher", "plain", "noisy"])
def test_image_k_does_not_depend_on_the_batch_size(gans, name):
    sampler = open_sampler(gans[name])
    at_once = generate(sampler)
    assert at_once.shape == (5, 3, *sampler.size)
    assert at_once.dtype == torch.float32
    assert 0 <= at_once.min() < at_once.max() <= 1
    for batch_size in (1, 2):
        torch.testing.assert_close(generate(sampler, batch_size=batch_size), at_once, atol=1e-5, rtol=0)


def test_a_image_is_what_the_network_makes_of_the_noise_of_its_seed_and_its_class(sampler):
    network, _ = random_gans.generator((32, 24, 16, 16))
    for image, prompt, seed in zip(generate(sampler), PROMPTS, SEEDS, strict=True):
        noise = torch.randn(16, generator=torch.Generator().manual_seed(seed))
        label = CLASSES.index(prompt) if prompt in CLASSES else int(prompt)
        with torch.no_grad():
            made = network.network(noise[None], torch.tensor([label]))[0] / 2 + 0.5
        torch.testing.assert_close(image, made, atol=1e-5, rtol=0)


def test_a_class_is_named_or_numbered_and_another_word_is_answered_with_the_nearest(sampler):
    torch.testing.assert_close(generate(sampler, [CLASSES[2]], [0]), generate(sampler, ["2"], [0]), atol=0, rtol=0)
    assert sampler.own_prompts == list(CLASSES)
    assert sampler.texts
    assert sampler.knows([CLASSES[0], "19"])
    assert not sampler.knows([CLASSES[0], "20"])
    with pytest.raises(
        ValueError, match=r"prompt 'google emoji of food': .* from 0 to 19; the nearest is 'google emoji of foo"
    ):
        generate(sampler, ["google emoji of food"], [0])


def test_a_generator_without_classes_takes_any_prompt(gans):
    sampler = open_sampler(gans["plain"])
    assert sampler.own_prompts == [""]
    assert not sampler.texts
    named, blank = generate(sampler, ["a", "b"], [0, 0]), generate(sampler, ["", ""], [0, 0])
    assert torch.equal(named, blank)


def test_numbers_are_no_texts(sampler):
    numbered = GeneratorSampler(random_gans.renamed(sampler.generator, ()))
    assert numbered.own_prompts == [str(number) for number in range(20)]
    assert not numbered.texts


def test_a_generator_that_samples_its_own_random_numbers_is_seeded_for_each_image_and_leaves_torchs_alone(gans):
    sampler = open_sampler(gans["noisy"])
    before = torch.get_rng_state()
    first = generate(sampler, [""] * 3, [0, 1, 0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(7)
    assert torch.equal(generate(sampler, [""] * 3, [0, 1, 0]), first)


def test_grey_images_are_given_as_colours_and_others_refused():
    grey = GeneratorSampler(Generator(random_gans.Wide().eval(), GeneratorSpec("noise", (8,), (1, 12, 24))))
    (images,) = grey.images(["", ""], [0, 1])
    assert images.shape == (2, 3, 12, 24)
    assert torch.equal(images[:, 0], images[:, 2])
    assert (grey.size, grey.resolution) == ((12, 24), 24)
    with pytest.raises(ValueError, match="generator: its images have 4 channels; expects 1 or 3"):
        GeneratorSampler(Generator(nn.Identity(), GeneratorSpec("noise", (8,), (4, 12, 24))))


def test_steps_and_guidance_that_a_generator_does_not_know_are_refused(sampler):
    with pytest.raises(ValueError, match="steps 4: expects 1, a generator samples in one call"):
        generate(sampler, num_inference_steps=4)
    with pytest.raises(ValueError, match="guidance_scale 3: a generator has no guidance; expects 1"):
        generate(sampler, guidance_scale=3.0)
    assert len(generate(sampler, num_inference_steps=1, guidance_scale=1.0)) == 5


def test_strips_begin_and_end_at_the_images_of_their_seeds(sampler):
    strips = sampler.strips([CLASSES[1], CLASSES[4]], [(3, 4), (5, 6)], 5)
    assert strips.shape == (2, 5, 3, 32, 32)
    ends = generate(sampler, [CLASSES[1], CLASSES[1], CLASSES[4], CLASSES[4]], [3, 4, 5, 6])
    torch.testing.assert_close(strips[:, [0, -1]].flatten(0, 1), ends, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="interpolate 1: expects at least 2"):
        sampler.strips([CLASSES[1]], [(3, 4)], 1)


def test_a_generator_of_images_is_given_files(gans, tmp_path):
    sampler = open_sampler(gans["painter"])
    colours = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    for number, pixels in enumerate(colours):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    prompts = input_prompts(sampler, tmp_path)
    assert prompts == [str(tmp_path / f"{number}.png") for number in range(3)]
    given = torch.from_numpy(colours).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        generated = sampler.generator.network(given) / 2 + 0.5
    torch.testing.assert_close(generate(sampler, prompts, [0, 0, 0]), generated, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"input 'food': is not a file; .* expects --input FOLDER"):
        generate(sampler, ["food"], [0])
    with pytest.raises(ValueError, match="has no images"):
        input_prompts(sampler, tmp_path / "nothing")
    with pytest.raises(ValueError, match="samples images from noise; expects no --input"):
        input_prompts(open_sampler(gans["plain"]), tmp_path)


def test_a_network_that_needs_its_channels_first_keeps_them(gans, tmp_path):
    """`view` of a convolution's output fails where its channels lie last."""
    made = random_gans.save(
        tmp_path / "flat",
        Generator(random_gans.Flat().eval(), GeneratorSpec("noise", (3, 4, 4), (3, 8, 8))),
        random_gans.NetworkSource("random_gans:Flat"),
    )
    flat, usual = open_sampler(made), open_sampler(gans["teacher"])
    assert flat.generator.network.conv.weight.is_contiguous()
    assert usual.generator.network.out.weight.is_contiguous(memory_format=torch.channels_last)
    assert generate(flat, [""] * 5).shape == (5, 3, 8, 8)


def test_the_hash_is_of_the_weights_and_what_is_sampled_of_them_is_described(gans, sampler):
    again, student = open_sampler(gans["teacher"]), open_sampler(gans["student"])
    assert again.weights_hash == sampler.weights_hash != student.weights_hash
    assert again.described(1, 1.0) == sampler.described(1, 1.0) != student.described(1, 1.0)
    changed = GeneratorSampler(sampler.generator.with_network(copy.deepcopy(sampler.generator.network)))
    changed.generator.network.out.bias.data += 1
    assert changed.weights_hash != sampler.weights_hash
    assert (sampler.method, student.method) == (None, "gan")


def test_the_student_of_a_run_is_found_in_its_folder(gans, tmp_path):
    assert gan_folder(gans["student"].parent) == gans["student"]
    assert gan_folder(gans["teacher"]) == gans["teacher"]
    assert gan_folder(tmp_path) is None


def test_costs_are_one_call_of_one_part(sampler):
    costs = measure_costs(sampler, list(CLASSES), batch_sizes=[1, 3], repeats=2, energy_seconds=0)
    assert list(costs.components) == ["network"]
    assert costs.network_calls == 1
    network = sampler.generator.network
    assert costs.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert costs.setting["generator"] == "ResNetGenerator"
    last = 2 * 32 * 32 * network.out.weight.numel()  # operations of the last convolution, by hand
    assert costs.flops > last > 0
