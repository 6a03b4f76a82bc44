import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from gendistill.samplers import FewStepSampler, to_uint8
from gendistill.schedulers import solver_eta, student_scheduler

PROMPTS = ["emoji of animals", "a red apple", "emoji of animals", "smileys", "food"]
SEEDS = [3, 1, 4, 1, 5]


def sampler_of(teacher, solver="lcm"):
    teacher.pipeline.scheduler = student_scheduler(solver, teacher.pipeline.scheduler.config, "epsilon", 40)
    return FewStepSampler(teacher.pipeline, eta=solver_eta(solver))


def generate(sampler, **arguments):
    return torch.cat(list(sampler.images(PROMPTS, SEEDS, num_inference_steps=2, **arguments)))


@pytest.mark.parametrize("solver", ["ddim", "lcm", "tcd"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_image_k_does_not_depend_on_the_batch_size(teacher, solver, guidance_scale):
    sampler = sampler_of(teacher, solver)
    at_once = generate(sampler, guidance_scale=guidance_scale)
    for batch_size in (1, 2):
        in_pieces = generate(sampler, guidance_scale=guidance_scale, batch_size=batch_size)
        torch.testing.assert_close(in_pieces, at_once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_image_is_the_plain_pipelines(teacher, guidance_scale):
    sampler = sampler_of(teacher)
    ours = generate(sampler, guidance_scale=guidance_scale)
    for number, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        (theirs,) = teacher.pipeline(
            prompt,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images
        torch.testing.assert_close(ours[number], theirs, atol=1e-5, rtol=0)


def test_each_distinct_prompt_is_encoded_once(teacher):
    encoded = []
    sampler = sampler_of(teacher)
    teacher.pipeline.text_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(output[0])))
    generate(sampler, guidance_scale=3.0, batch_size=2)
    assert sum(encoded) == len({*PROMPTS, ""})
    generate(sampler, guidance_scale=3.0)
    assert sum(encoded) == len({*PROMPTS, ""})


def test_latents_decode_to_the_images_and_progress_counts_them(teacher):
    sampler, counted = sampler_of(teacher), []
    latents = torch.cat(
        list(sampler.latents(PROMPTS, SEEDS, num_inference_steps=2, guidance_scale=1, batch_size=2, progress=counted.append))
    )
    assert counted == [2, 2, 1]
    decoded = teacher.codec.decode(latents) / 2 + 0.5
    torch.testing.assert_close(decoded, generate(sampler, guidance_scale=1), atol=1e-5, rtol=0)


def test_images_are_rounded_as_diffusers_rounds_them(teacher, generator):
    images = torch.rand(2, 3, 8, 8, generator=generator)
    by_diffusers = teacher.pipeline.image_processor.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    ours = to_uint8(images).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ours, np.stack([np.asarray(image) for image in by_diffusers]))


def test_a_folder_that_is_no_pipeline_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index\.json; expects a diffusers pipeline folder"):
        FewStepSampler.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not exist; expects a diffusers pipeline folder"):
        FewStepSampler.from_pretrained(tmp_path / "nothing")


def test_the_share_of_fresh_noise_that_a_spec_asks_for_is_what_the_plain_pipeline_makes_of_eta(teacher):
    sampler = sampler_of(teacher, "tcd")
    generated = {}
    for eta in (0.0, 0.5):
        sampler.eta = eta
        generated[eta] = next(sampler.images(["food", "animals"], [3, 4], num_inference_steps=4, guidance_scale=1))
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        plain = teacher.pipeline(
            ["food", "animals"], num_inference_steps=4, guidance_scale=1, eta=eta, generator=generators, output_type="pt"
        ).images
        torch.testing.assert_close(generated[eta], plain, atol=1e-5, rtol=0)
    assert (generated[0.0] - generated[0.5]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("part", "weight", "latent"),
    [("unet", "conv_out.bias", False), ("vae", "decoder.conv_out.bias", False), ("unet", "conv_out.bias", True)],
)
def test_the_part_that_computes_values_that_are_not_finite_is_named(teacher, part, weight, latent):
    sampler = FewStepSampler(teacher.pipeline)
    dict(getattr(teacher.pipeline, part).named_parameters())[weight].data[0] = torch.nan
    with pytest.raises(
        ValueError, match=f"the output of the model's {part} has values that are not finite in float32; expects a"
    ):
        list(sampler.images(["food"], [0], num_inference_steps=2, guidance_scale=1.0, latent=latent))


def test_an_overflow_of_float16_asks_for_another_dtype(tiny_folder):
    sampler = FewStepSampler.from_pretrained(tiny_folder, dtype=torch.float16)
    sampler.pipeline.vae.decoder.conv_in.weight.data.fill_(6e4)
    with pytest.raises(ValueError, match="the model's vae has values that are not finite in float16; expects --dtype bfloat16"):
        list(sampler.images(["food"], [0], num_inference_steps=1, guidance_scale=1.0))
    text_encoder = sampler.pipeline.text_encoder
    dict(text_encoder.named_parameters())[next(n for n, _ in text_encoder.named_parameters() if "norm" in n)].data.fill_(6e4)
    with pytest.raises(ValueError, match="the model's text_encoder has values that are not finite in float16"):
        list(sampler.images(["animals"], [0], num_inference_steps=1, guidance_scale=1.0))


NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU by g++")


@pytest.mark.parametrize("quantization", ["none", "int8-weights", "nf4-weights"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_COMPILER])])
def test_a_compiled_network_samples_the_same_and_is_compiled_once_for_batches_of_about_a_size(
    tiny_folder, backend, quantization
):
    plain, compiled = (FewStepSampler.from_pretrained(tiny_folder, quantization=quantization) for _ in range(2))
    compiled.compile(backend)

    def generate(sampler, count):
        settings = {"num_inference_steps": 2, "guidance_scale": 1, "batch_size": 4}
        return torch.cat(list(sampler.images(["food"] * count, list(range(count)), **settings)))

    torch.testing.assert_close(generate(compiled, 3), generate(plain, 3), atol=1e-4, rtol=0)
    compiled_once = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(generate(compiled, 7), generate(plain, 7), atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] == compiled_once > 0
