"""Networks are trained on latents of any aspect ratio as the stock pipelines call them."""

import pytest
import torch
from tiny_families import TINY

from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import load_teacher
from gendistill.samplers import FewStepSampler
from gendistill.samplers.scheduler_of import scheduler_of
from gendistill.schedulers import edm_scheduler, flow_scheduler, student_scheduler

OF_ONE_SHAPE = ("classes", "edm", "grey", "ldm", "dit", "pixart-alpha")  # whose stock pipelines have one size or squares
SIZES = {"unconditional": (16, 24), "rgba": (18, 12), "sana": (32, 64)}


def ddim_of(teacher):
    schedule, config = teacher.denoiser.schedule, teacher.pipeline.scheduler.config
    if schedule.kind == "flow":
        return flow_scheduler("ddim", schedule, passes_sigmas=True)  # the same one step, whoever passes its sigma
    if schedule.kind == "edm":
        return edm_scheduler("ddim", config, 2)
    return student_scheduler("ddim", config, teacher.denoiser.prediction_type, bounded=teacher.family.bounded, steps=[2])


@pytest.mark.parametrize("name", [name for name in TINY if name not in {*OF_ONE_SHAPE, "sd2", "sd3-without-t5"}])
def test_one_or_two_steps_are_those_of_the_stock_pipeline(family_folder, name):
    teacher = load_teacher(family_folder(name), size=SIZES.get(name, (32, 48)))
    steps = 1 if teacher.denoiser.schedule.kind == "flow" else 2
    sampler, prompts = FewStepSampler(teacher.pipeline, size=teacher.size), teacher.own_prompts or ["food"]
    with scheduler_of(teacher.pipeline, ddim_of(teacher)):
        scale = teacher.family.neutral_guidance
        theirs = next(sampler.latents(prompts[:1], [5], num_inference_steps=steps, guidance_scale=scale))
    noise = torch.randn(1, *teacher.codec.latent_shape(teacher.size), generator=torch.Generator().manual_seed(5))
    if teacher.denoiser.schedule.kind == "edm":
        noise = noise * sampler.pipeline.scheduler.init_noise_sigma / (80.0**2 + 0.5**2) ** 0.5
    conditioning = teacher.encode_prompts(prompts[:1])
    if teacher.family.guidance_input:
        conditioning = conditioning.with_guidance(torch.tensor([scale]))
    ours, _ = few_step_rollout(teacher.denoiser, noise, conditioning, steps)
    ours = ours.clamp(-1, 1) if teacher.family.bounded else ours
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
