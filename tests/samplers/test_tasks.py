"""Images from images, in masks, under controls, with a second LoRA: as the stock pipelines sample them, at any batch size."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, ControlNetModel, DDIMScheduler
from PIL import Image
from tiny_add_ons import load_style_adapter, save_control, save_lora

from gendistill.samplers import FewStepSampler
from gendistill.samplers.tasks import Task, min_strength

PROMPTS, SEEDS = ["emoji of animals", "a red apple", "food"], [3, 1, 4]
STEPS = 4


@pytest.fixture
def sampler(teacher):
    teacher.pipeline.scheduler = DDIMScheduler.from_config(teacher.pipeline.scheduler.config, timestep_spacing="trailing")
    return FewStepSampler(teacher.pipeline)


@pytest.fixture
def given(sampler, tmp_path):
    """given(name): a task of that name, of three images."""
    torch.manual_seed(0)
    images = torch.rand(3, 3, 32, 32)
    masks = torch.zeros(3, 1, 32, 32)
    masks[..., 16:] = 1
    control = ControlNetModel.from_pretrained(save_control(sampler.pipeline.unet, tmp_path / "control"))
    return {
        "image-to-image": Task(images=images, strength=0.5),
        "inpainting": Task(images=images, masks=masks, strength=1.0),
        "control": Task(controlnet=control, controls=images),
        "controlled image-to-image": Task(images=images, controlnet=control, controls=images.flip(0), strength=0.75),
    }.__getitem__


def generate(sampler, task, **changes):
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, **changes}
    return torch.cat(list(sampler.images(PROMPTS, SEEDS, task=task, **settings)))


NAMES = ["image-to-image", "inpainting", "control", "controlled image-to-image"]


@pytest.mark.parametrize("name", NAMES)
def test_stable_diffusion_xl_takes_them_too(family_folder, given, name, tmp_path):
    sampler = FewStepSampler.from_pretrained(family_folder("sdxl"))
    task = given(name)
    if task.controlnet is not None:
        of_xl = ControlNetModel.from_pretrained(save_control(sampler.pipeline.unet, tmp_path / "control-of-xl"))
        task = replace(task, controlnet=of_xl)
    together = generate(sampler, task, guidance_scale=2.0)
    torch.testing.assert_close(generate(sampler, task, guidance_scale=2.0, batch_size=1), together, atol=1e-5, rtol=0)
    assert (together - generate(sampler, Task(), guidance_scale=2.0)).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_image_does_not_depend_on_its_batch(sampler, given, name):
    torch.testing.assert_close(generate(sampler, given(name), batch_size=1), generate(sampler, given(name)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_and_the_seed_still_count(sampler, given, name):
    generated = generate(sampler, given(name))
    assert generated.shape == (3, 3, 32, 32)
    assert (generated[0] - generated[1]).abs().max() > 0.01


STOCK = {"image-to-image": AutoPipelineForImage2Image, "inpainting": AutoPipelineForInpainting}


@pytest.mark.parametrize("name", STOCK)
def test_it_is_the_stock_pipelines_image(sampler, given, name):
    task, stock = given(name), STOCK[name].from_pipe(sampler.pipeline)
    stock.set_progress_bar_config(disable=True)
    (theirs,) = stock(
        PROMPTS[1],
        image=task.images[1:2],
        strength=task.strength,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(SEEDS[1]),
        output_type="pt",
        **({} if task.masks is None else {"mask_image": task.masks[1:2]}),
    ).images
    torch.testing.assert_close(generate(sampler, task)[1], theirs, atol=1e-5, rtol=0)


def test_what_is_outside_of_a_mask_stays_whatever_the_prompt(sampler, given):
    task = given("inpainting")
    same = Task(images=task.images[:1].repeat(2, 1, 1, 1), masks=task.masks[:2], strength=1.0)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "task": same}
    one, other = torch.cat(list(sampler.images(["food", "animals"], [0, 0], **settings)))
    away = (one - other).abs().mean((0, 1))
    assert away[:8].mean() < 0.5 * away[-8:].mean()


def test_a_second_lora_counts_on_top(sampler, tmp_path):
    before = generate(sampler, Task())
    sampler.pipeline.load_lora_weights(save_lora(sampler.pipeline.unet, tmp_path / "lora"), adapter_name="style")
    assert (generate(sampler, Task()) - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Task(images=torch.zeros(2, 3, 32, 32)), "images: 2 for 3 prompts; expects one per prompt"),
        (Task(masks=torch.zeros(3, 1, 32, 32)), "masks: expects images to inpaint"),
        (Task(controls=torch.zeros(3, 3, 32, 32)), "controlnet and controls: expects both or neither"),
        (
            Task(images=torch.zeros(3, 3, 32, 32), strength=0.1),
            "strength 0.1: none of 4 steps is run; expects at least 0.25",
        ),
        (Task(images=torch.zeros(3, 3, 32, 32), strength=2), "strength 2: expects more than 0 and at most 1"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(sampler, task, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        generate(sampler, task)


def test_the_strength_that_an_error_suggests_is_accepted():
    for steps in range(1, 1001):
        strength = float(f"{min_strength(steps):g}")
        Task(images=torch.zeros(3, 3, 1, 1), strength=strength).require(3, steps)
        assert strength <= 1.02 / steps + 0.01


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_each_prompt_has_the_style_of_its_own_image(sampler, guidance_scale):
    load_style_adapter(sampler.pipeline)
    styles = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    task = Task(styles=styles)
    generated = generate(sampler, task, guidance_scale=guidance_scale)
    stock = sampler.pipeline(
        PROMPTS[1],
        ip_adapter_image=styles[1],
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEEDS[1]),
        output_type="pt",
    ).images[0]
    torch.testing.assert_close(generated[1], stock, atol=1e-5, rtol=0)
    others = generate(sampler, Task(styles=styles[::-1]), guidance_scale=guidance_scale)
    assert (generated[0] - others[0]).abs().max() > 0.005
    torch.testing.assert_close(generated[1], others[1], atol=1e-5, rtol=0)
