"""EDM (Karras et al. 2022): latents divided by sigma_data are those of a variance-preserving teacher that predicts v."""

import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from tiny_pipeline import tiny_edm

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import load_teacher
from gendistill.evaluation.teacher_plans import teacher_plans, teacher_scheduler
from gendistill.methods.recipe import RunConfig
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler, dpm_solver_path
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.scheduler_of import scheduler_of
from gendistill.schedulers import NoiseSchedule, edm_scheduler, trailing

SCHEDULERS = [
    EDMEulerScheduler(),
    EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0, sigma_max=120.0, sigma_schedule="exponential"),
    EDMDPMSolverMultistepScheduler(sigma_min=0.01, rho=5.0, num_train_timesteps=40),
]
TYPES = {"epsilon": "negative_v", "v_prediction": "v_prediction"}
NOTHING = Conditioning()


def denoiser_of(scheduler, network):
    """`network(x, c_noise)` as the network of a teacher with that scheduler."""
    type_of_teacher = TYPES[scheduler.config.prediction_type]
    return Denoiser(network, NoiseSchedule.from_scheduler(scheduler), type_of_teacher, lambda net, x, t, c: net(x, t))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_denoiser_has_the_x_0_of_diffusers_preconditioning(scheduler, generator):
    denoiser, sigma_data = denoiser_of(scheduler, lambda x, t: torch.sin(3 * x + t[:, None])), scheduler.config.sigma_data
    t = torch.linspace(0, scheduler.config.num_train_timesteps - 1, 9).long()
    sample = torch.randn(9, 5, generator=generator) * 3
    sigma = scheduler.sigmas[:-1].flip(0)[-scheduler.config.num_train_timesteps :].float()
    if len(scheduler.timesteps) > scheduler.config.num_train_timesteps:  # Euler's table has one more, between the others
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        sigma = scheduler.sigmas[:-1].flip(0)
    sigma = sigma[t][:, None]
    model_output = denoiser.network(scheduler.precondition_inputs(sample, sigma), scheduler.precondition_noise(sigma)[:, 0])
    theirs = scheduler.precondition_outputs(sample, model_output, sigma)
    prediction = denoiser(sample / (sigma**2 + sigma_data**2).sqrt(), t, NOTHING)
    torch.testing.assert_close(sigma_data * prediction.x_0, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(sigma * prediction.eps, sample - theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_students_scheduler_has_the_trailing_timesteps(scheduler, steps):
    schedule = NoiseSchedule.from_scheduler(scheduler)
    sampler = edm_scheduler("ddim", scheduler.config, steps)
    sampler.set_timesteps(steps)
    grid = trailing(steps, schedule.num_train_timesteps)
    torch.testing.assert_close(schedule.index_of(schedule.network_time(grid)), grid.double(), atol=1e-3, rtol=0)
    rounded = 0.51 if steps == 3 else 0.02  # no integers between the first and the last of 3
    rounded *= 10 if scheduler.config.sigma_schedule == "exponential" else 1
    torch.testing.assert_close(schedule.index_of(sampler.timesteps), grid.double(), atol=rounded, rtol=0)
    torch.testing.assert_close(float(sampler.sigmas[0]), scheduler.config.sigma_max, atol=0, rtol=1e-4)
    assert sampler.sigmas[-1] == 0
    assert {
        name: value for name, value in sampler.config.items() if name in ("sigma_max", "sigma_data", "prediction_type")
    } == {name: scheduler.config[name] for name in ("sigma_max", "sigma_data", "prediction_type")}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_path_of_gaussian_data_is_its_closed_form(scheduler):
    """Data N(0, s^2), whose probability-flow ODE keeps x / std(x_t) (Song et al. 2021, appendix D.3)."""
    s, sigma_data = 0.8, scheduler.config.sigma_data  # s in the units of the scheduler

    def network(x, c_noise):
        sigma = (4 * c_noise).exp()[:, None]
        sample = x * (sigma**2 + sigma_data**2).sqrt()
        denoised = s**2 / (s**2 + sigma**2) * sample  # E[x_0 | sample]
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        sign = 1 if scheduler.config.prediction_type == "epsilon" else -1
        return sign * (denoised - sigma_data**2 / (sigma**2 + sigma_data**2) * sample) / c_out

    denoiser = denoiser_of(scheduler, network)
    noise = torch.tensor([[-1.5], [0.2], [2.0]], dtype=torch.float64)
    end, schedule = noise * s / sigma_data / math.hypot(1, s / scheduler.config.sigma_max), denoiser.schedule
    end = end / math.sqrt(1 / (1 + (sigma_data / scheduler.config.sigma_max) ** 2))  # std of x_T is not exactly 1
    times = trailing(min(schedule.num_train_timesteps, 400), schedule.num_train_timesteps)
    path = dpm_solver_path(lambda x, t: denoiser(x, t, NOTHING), noise, times, schedule)
    torch.testing.assert_close(path[:, -1], end, atol=2 / len(times), rtol=0)
    x = few_step_rollout(denoiser, noise, NOTHING, len(times))[0]
    torch.testing.assert_close(x, end, atol=24 / len(times), rtol=0)


@pytest.mark.parametrize("family", ["playground", "edm"])
def test_few_steps_are_those_of_the_stock_pipeline(family_folder, family):
    teacher = load_teacher(family_folder(family))
    sampler, config = FewStepSampler(teacher.pipeline), teacher.pipeline.scheduler.config
    seeds, prompts = [3, 1], ["food", "emoji of animals"] if family == "playground" else ["", ""]
    with scheduler_of(teacher.pipeline, edm_scheduler("ddim", config, 4)):
        theirs = torch.cat(list(sampler.images(prompts, seeds, num_inference_steps=4, guidance_scale=1.0)))
    shape = teacher.codec.latent_shape(teacher.size)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    # diffusers' EDM pipelines begin at sigma_max^2 + 1, not at sigma_max^2 + sigma_data^2
    noise = noise * math.sqrt((config.sigma_max**2 + 1) / (config.sigma_max**2 + config.sigma_data**2))
    latents = few_step_rollout(teacher.denoiser, noise, teacher.encode_prompts(prompts), 4)[0]
    torch.testing.assert_close(teacher.codec.decode(latents) / 2 + 0.5, theirs, atol=1e-5, rtol=0)


def test_trajectories_are_those_of_diffusers_dpm_solver(family_folder):
    teacher = load_teacher(family_folder("playground"))
    sampler, config = FewStepSampler(teacher.pipeline), teacher.pipeline.scheduler.config
    with scheduler_of(teacher.pipeline, edm_scheduler("dpm-solver++", config, 8)):
        (theirs,) = sampler.latents(["food"], [5], num_inference_steps=8, guidance_scale=1.0)
    noise = torch.randn(1, *theirs.shape[1:], generator=torch.Generator().manual_seed(5))
    condition, denoiser = teacher.encode_prompts(["food"]), teacher.denoiser
    path = dpm_solver_path(lambda x, t: denoiser(x, t, condition), noise, trailing(8), denoiser.schedule)
    torch.testing.assert_close(path[:, -1], theirs, atol=2e-4, rtol=0)


def test_latents_have_the_units_of_the_diffusion_and_come_back(family_folder):
    teacher = load_teacher(family_folder("playground"))
    vae, images = teacher.pipeline.vae, torch.rand(2, 3, 32, 32) * 2 - 1
    mean = teacher.codec.moments(images).chunk(2, dim=1)[0]
    by_hand = vae.encode(images).latent_dist.mean
    statistics = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    shift, deviation = statistics
    torch.testing.assert_close(mean, (by_hand - shift) * vae.config.scaling_factor / deviation / 0.5)
    torch.testing.assert_close(teacher.codec.decode(mean), vae.decode(by_hand).sample.clamp(-1, 1), atol=1e-5, rtol=0)


def test_a_teacher_is_compared_by_solvers_of_its_own_schedule(family_folder):
    sampler = FewStepSampler(load_teacher(family_folder("playground")).pipeline)
    assert {solver for solver, _, _ in teacher_plans(sampler)} == {"ddim", "dpm-solver++"}
    for solver, kind in (("ddim", EDMEulerScheduler), ("dpm-solver++", EDMDPMSolverMultistepScheduler)):
        assert type(teacher_scheduler(solver, sampler.pipeline, steps=4)) is kind


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"progressive.sampler": "stochastic"},
            r"progressive\.sampler stochastic: no scheduler of diffusers samples so .* ddim$",
        ),
        ({"progressive.grid": [999, 700]}, r"progressive\.grid \[999, 700\]: .* noise schedule of .* \(edm\); expects null$"),
        ({"data.resolution": "16x24"}, "data.resolution 16x24: a ConsistencyModelPipeline generates squares only; expects one"),
    ],
)
def test_what_edm_cannot_do_is_one_sentence(tmp_path, changes, sentence):
    tiny_edm().save_pretrained(tmp_path / "teacher")
    given = {"teacher": str(tmp_path / "teacher"), "method": "progressive", "steps": [2], "progressive.start_steps": 4}
    config: RunConfig = load_config(None, given | {"out": str(tmp_path / "run"), "device": "cpu"} | changes)
    with pytest.raises(ValueError, match=sentence):
        distill(config)
