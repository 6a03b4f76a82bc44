import pytest
import torch
from diffusers import StableDiffusionPipeline

from gendistill.samplers.families.stable_diffusion import guidance_embedding

PROMPTS = ["emoji of animals", "a red apple", "food"]


@pytest.fixture
def inputs(teacher, generator):
    """x_t, t, conditioning and the empty prompt."""
    x_t = torch.randn(3, 4, 8, 8, generator=generator)
    return x_t, torch.tensor([19, 499, 999]), teacher.encode_prompts(PROMPTS), teacher.encode_prompts([""])


def assert_close(one, other):
    torch.testing.assert_close(one.x_0, other.x_0, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(one.eps, other.eps, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_denoiser_predicts_as_the_unet_and_diffusers_scheduler_do(teacher, inputs):
    x_t, t, conditioning, _ = inputs
    prediction = teacher.denoiser(x_t, t, conditioning)
    output = teacher.network(x_t, t, conditioning["prompt_embeds"]).sample
    alpha_bar = teacher.pipeline.scheduler.alphas_cumprod[t][:, None, None, None]
    assert torch.equal(prediction.eps, output)
    expected = (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    torch.testing.assert_close(prediction.x_0, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_guidance_of_scale_1_is_the_conditional_prediction_and_of_0_the_unconditional(teacher, inputs):
    x_t, t, conditioning, empty = inputs
    assert_close(teacher.denoiser.guided(x_t, t, conditioning, empty, torch.ones(3)), teacher.denoiser(x_t, t, conditioning))
    assert_close(teacher.denoiser.guided(x_t, t, conditioning, empty, 0.0), teacher.denoiser(x_t, t, empty.expand(3)))


@torch.no_grad()
@pytest.mark.parametrize("scale", [3.0, torch.tensor([1.0, 3.0, 7.5])])
def test_guidance_is_the_formula_of_classifier_free_guidance(teacher, inputs, scale):
    x_t, t, conditioning, empty = inputs
    conditional, unconditional = teacher.denoiser(x_t, t, conditioning), teacher.denoiser(x_t, t, empty.expand(3))
    guided = teacher.denoiser.guided(x_t, t, conditioning, empty, scale)
    w = torch.as_tensor(scale).expand(3).reshape(3, 1, 1, 1)
    expected = unconditional.eps + w * (conditional.eps - unconditional.eps)
    torch.testing.assert_close(guided.eps, expected, atol=1e-5, rtol=1e-5)
    expected = unconditional.x_0 + w * (conditional.x_0 - unconditional.x_0)
    torch.testing.assert_close(guided.x_0, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_guidance_keeps_x_t(teacher, inputs):
    x_t, t, conditioning, empty = inputs
    guided = teacher.denoiser.guided(x_t, t, conditioning, empty, 3.0)
    torch.testing.assert_close(teacher.denoiser.schedule.add_noise(guided.x_0, guided.eps, t), x_t, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_calls_the_network_once_with_the_branches_that_it_needs(teacher, inputs):
    x_t, t, conditioning, empty = inputs
    batches = []
    teacher.network.register_forward_hook(lambda module, arguments, output: batches.append(len(output.sample)))
    teacher.denoiser.guided(x_t, t, conditioning, empty, 3.0)
    teacher.denoiser.guided(x_t, t, conditioning, empty, 1.0)  # no guidance: one branch
    assert batches == [6, 3]


@torch.no_grad()
def test_half_precision_networks_predict_in_float32(teacher, inputs):
    x_t, t, conditioning, _ = inputs
    exact = teacher.denoiser(x_t, t, conditioning)
    half = teacher.denoiser.with_network(teacher.network.bfloat16())(x_t, t, conditioning)
    assert half.x_0.dtype == half.eps.dtype == torch.float32
    torch.testing.assert_close(half.eps, exact.eps, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dimensions", [256, 32, 7])
def test_the_guidance_embedding_is_that_of_diffusers_pipelines(tiny_folder, dimensions):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    scales = torch.tensor([1.0, 1.5, 3.0, 7.5])
    expected = pipeline.get_guidance_scale_embedding(scales - 1, dimensions)
    torch.testing.assert_close(guidance_embedding(scales, dimensions), expected, atol=1e-5, rtol=1e-5)
