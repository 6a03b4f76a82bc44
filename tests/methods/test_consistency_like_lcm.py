"""The loss of diffusers' LCM training script, written out again from Luo et al. 2023, on the same inputs."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from tiny_pipeline import tiny_unet

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import full_networks
from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.schedulers import NoiseSchedule

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
BATCH, K, W_MIN, W_MAX = 16, 50, 2.0, 8.0  # w = guidance scale - 1


def lcm_loss(teacher, student, target, latents, embeds, empty, noise, index, w, prediction_type, huber):
    """One evaluation of the training script's loss, for networks as plain UNets."""
    alpha_bar = SCHEDULER.alphas_cumprod
    solver_timesteps = torch.arange(1, K + 1) * (1000 // K) - 1
    start = solver_timesteps[index]
    end = (start - 1000 // K).clamp(min=0)
    alpha_bar_of_previous = torch.cat([alpha_bar[:1], alpha_bar[solver_timesteps[:-1]]])

    def shaped(values):
        return values[:, None, None, None]

    def scalings(t):
        t = t * 10.0
        return shaped(0.5**2 / (t**2 + 0.5**2)), shaped(t / (t**2 + 0.5**2) ** 0.5)

    def x_0_and_eps(output, sample, t):
        alpha, sigma = shaped(alpha_bar[t].sqrt()), shaped((1 - alpha_bar[t]).sqrt())
        if prediction_type == "epsilon":
            return (sample - sigma * output) / alpha, output
        return alpha * sample - sigma * output, alpha * output + sigma * sample

    w_embedding = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, 256)
    noisy = SCHEDULER.add_noise(latents, noise, start)

    c_skip, c_out = scalings(start)
    x_0, _ = x_0_and_eps(student(noisy, start, embeds, timestep_cond=w_embedding).sample, noisy, start)
    model_prediction = c_skip * noisy + c_out * x_0

    with torch.no_grad():
        conditional_x_0, conditional_eps = x_0_and_eps(teacher(noisy, start, embeds).sample, noisy, start)
        nothing = empty.expand(len(latents), -1, -1)
        unconditional_x_0, unconditional_eps = x_0_and_eps(teacher(noisy, start, nothing).sample, noisy, start)
        guided_x_0 = conditional_x_0 + shaped(w) * (conditional_x_0 - unconditional_x_0)
        guided_eps = conditional_eps + shaped(w) * (conditional_eps - unconditional_eps)
        previous = shaped(alpha_bar_of_previous[index])
        x_previous = previous.sqrt() * guided_x_0 + (1 - previous).sqrt() * guided_eps

        c_skip, c_out = scalings(end)
        x_0, _ = x_0_and_eps(target(x_previous, end, embeds, timestep_cond=w_embedding).sample, x_previous, end)
        target_prediction = c_skip * x_previous + c_out * x_0
    difference = model_prediction - target_prediction
    return ((difference**2 + 0.001**2).sqrt() - 0.001).mean() if huber else (difference**2).mean()


@pytest.mark.parametrize("loss", ["pseudo_huber", "l2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_and_its_gradient_are_those_of_diffusers_lcm_script(prediction_type, loss, generator):
    schedule = NoiseSchedule.from_scheduler(SCHEDULER)
    teacher = Denoiser(tiny_unet(0).eval(), schedule, prediction_type, StableDiffusion().call)
    networks = full_networks(teacher, 256)
    for number, network in enumerate((networks.student.network, networks.average.network)):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    config = ConsistencyConfig(num_ddim_timesteps=K, loss=loss, target="ema")
    guidance = GuidanceConfig(mode="embedded", range=(W_MIN + 1, W_MAX + 1))
    latents = torch.randn(BATCH, 4, 8, 8, generator=generator)
    embeds, empty = torch.randn(BATCH, 6, 32, generator=generator), torch.randn(1, 6, 32, generator=generator)
    method = ConsistencyDistillation(networks, Guidance(Conditioning(prompt_embeds=empty), guidance), config)
    (update,) = method.updates(Batch(latents, Conditioning(prompt_embeds=embeds)), 0, PerSampleRandom(3, 0, 0, BATCH))
    update.loss.backward()

    random = PerSampleRandom(3, 0, 0, BATCH)  # the same samples: noise, point of the grid, guidance
    noise, index = random.normal((4, 8, 8)), (random.uniform() * K).long()
    w = W_MIN + (W_MAX - W_MIN) * random.uniform()
    student = copy.deepcopy(networks.student.network)
    student.zero_grad()
    others = (latents, embeds, empty, noise, index, w, prediction_type, loss == "pseudo_huber")
    expected = lcm_loss(teacher.network, student, networks.average.network, *others)
    expected.backward()

    torch.testing.assert_close(update.loss, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (
        torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        for network in (networks.student.network, student)
    )
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
