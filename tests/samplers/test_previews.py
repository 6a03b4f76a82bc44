"""Small pictures of latents by a straight line."""

import pytest
import torch
import torch.nn.functional as F

from gendistill.samplers import FewStepSampler
from gendistill.samplers.offload.streaming import PicturesDone, StepDone
from gendistill.samplers.previews import LatentPreview


def test_a_line_is_found_exactly(generator):
    latents = torch.randn(5, 4, 6, 6, generator=generator)
    weight, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    colours = F.conv2d(latents, weight[:, :, None, None], bias)
    preview = LatentPreview.fitted(latents, F.interpolate(colours, scale_factor=8, mode="nearest"))
    torch.testing.assert_close(preview.weight, weight, atol=1e-4, rtol=0)
    torch.testing.assert_close(preview.bias, bias, atol=1e-4, rtol=0)
    assert preview.share == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(preview(latents), colours.clamp(0, 1), atol=1e-4, rtol=0)


def test_previews_of_tiny_sd_look_like_its_pictures():
    sampler = FewStepSampler.from_pretrained("assets/tiny-sd")
    asked = {"num_inference_steps": 8, "guidance_scale": 1.0}
    prompts = ["google emoji of food fruit", "emoji of animals", "twitter emoji of a red apple", "smileys"]
    seeds = [1, 2, 3, 4]
    latents = torch.cat(list(sampler.latents(prompts, seeds, **asked)))
    preview = LatentPreview.fitted(latents, torch.cat(list(sampler.pictures(prompts, seeds, **asked))))
    assert preview.share > 0.8
    *steps, done = sampler.events(["emoji of a flag"], [9], **asked)
    assert isinstance(done, PicturesDone)
    assert all(isinstance(step, StepDone) for step in steps)
    small = F.interpolate(done.pictures, steps[0].latents.shape[2:], mode="area")
    errors = [(preview(step.latents) - small).square().mean() for step in steps]
    assert errors[-1] < errors[0] / 4  # the picture appears
    assert errors[-1] < 0.02


def test_a_model_of_pixels_needs_no_preview(family_folder):
    sampler = FewStepSampler.from_pretrained(family_folder("unconditional"))
    with pytest.raises(ValueError, match="draws pixels; takes a model of latents"):
        LatentPreview.of(sampler, [""])
