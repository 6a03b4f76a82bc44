import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from gendistill.assets import ASSETS
from gendistill.diffusion.teacher import load_teacher
from gendistill.samplers import ddim_step
from gendistill.samplers.single_file import ARCHITECTURES
from gendistill.schedulers import (
    GridDDIMScheduler,
    NoiseSchedule,
    StochasticDDIMScheduler,
    skipping,
    student_scheduler,
    to_prediction,
    trailing,
)
from gendistill.schedulers.student_scheduler import SOLVERS
from gendistill.schedulers.timesteps import nested

STABLE_DIFFUSION = PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
)
TEACHER = STABLE_DIFFUSION.config


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 5, 8, 3, 6, 7, 12, 13, 16, 25, 32, 48, 64])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_ddim_scheduler_of_a_student_makes_our_ddim_steps_and_ends_in_x_0(num_inference_steps, prediction_type, generator):
    scheduler = student_scheduler("ddim", TEACHER, prediction_type, steps=[num_inference_steps])
    scheduler.set_timesteps(num_inference_steps)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    grid = trailing(num_inference_steps)
    assert torch.equal(scheduler.timesteps, grid)
    ours = theirs = torch.randn(2, 4, 8, 8, generator=generator)
    for number, t in enumerate(grid):
        output = torch.randn(ours.shape, generator=generator)
        theirs = scheduler.step(output, t, theirs).prev_sample
        prediction = to_prediction(output, ours, t.expand(2), prediction_type, schedule)
        last = number == num_inference_steps - 1
        ours = prediction.x_0 if last else ddim_step(prediction.x_0, prediction.eps, grid[number + 1].expand(2), schedule)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_ddim_is_diffusers_own_class_wherever_that_goes_by_its_own_grid():
    pixels = DDIMScheduler(clip_sample=True).config
    assert type(student_scheduler("ddim", TEACHER, "epsilon", steps=[8, 4, 2, 1])) is DDIMScheduler
    assert type(student_scheduler("ddim", TEACHER, "epsilon", steps=[8, 16])) is DPMSolverMultistepScheduler
    assert type(student_scheduler("ddim", pixels, "epsilon", bounded=True, steps=[16])) is GridDDIMScheduler
    assert student_scheduler("ddim", pixels, "epsilon", bounded=True, steps=[16]).config.clip_sample


@pytest.mark.parametrize(("solver", "kind"), [("ddim", GridDDIMScheduler), ("stochastic", StochasticDDIMScheduler)])
def test_a_grid_is_carried_by_a_scheduler_of_ours(solver, kind):
    scheduler = student_scheduler(solver, TEACHER, "v_prediction", steps=[3], grids=[[999, 700, 200]])
    scheduler.set_timesteps(3)
    assert type(scheduler) is kind
    assert scheduler.timesteps.tolist() == [999, 700, 200]
    assert torch.equal(scheduler.alphas_cumprod, STABLE_DIFFUSION.alphas_cumprod)


@pytest.mark.parametrize("solver", ["ddim", "lcm", "tcd"])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 4])
def test_every_solver_visits_the_trailing_grid_on_the_teachers_noise_schedule(solver, num_inference_steps):
    scheduler = student_scheduler(solver, TEACHER, "epsilon", num_ddim_timesteps=40)
    scheduler.set_timesteps(num_inference_steps)
    assert torch.equal(scheduler.timesteps.cpu(), trailing(num_inference_steps))
    assert torch.equal(scheduler.alphas_cumprod, STABLE_DIFFUSION.alphas_cumprod)


@pytest.mark.parametrize("solver", ["ddim", "lcm", "tcd"])
def test_a_zero_terminal_snr_teacher_gives_its_schedule_and_dialect_on(solver):
    config = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).config
    scheduler = student_scheduler(solver, config, "v_prediction")
    assert torch.equal(scheduler.alphas_cumprod, DDIMScheduler.from_config(config).alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    assert not scheduler.config.clip_sample


def test_an_unknown_solver_is_refused_in_one_sentence_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"^solver 'euler' is not known; expects one of ddim, lcm, tcd, stochastic$"):
        student_scheduler("euler", TEACHER, "epsilon")


COMMON = (
    DDIMScheduler,
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    LCMScheduler,
    PNDMScheduler,
)
WRITTEN = [
    *(student_scheduler(solver, TEACHER, "epsilon", steps=[4]) for solver in SOLVERS),
    student_scheduler("ddim", TEACHER, "epsilon", steps=[3]),
    student_scheduler("ddim", TEACHER, "epsilon", grids=[[999, 700, 200]]),
]
SHIPPED = [ASSETS / "tiny-sd", *(folder for folder in ARCHITECTURES.iterdir() if (folder / "unet").is_dir())]


@pytest.mark.parametrize("kind", COMMON)
@pytest.mark.parametrize("written", WRITTEN, ids=lambda scheduler: type(scheduler).__name__)
def test_other_schedulers_made_from_a_students_config_do_not_clip_and_begin_at_the_last_timestep(written, kind, tmp_path):
    written.save_pretrained(tmp_path)
    made = kind.from_config(type(written).load_config(tmp_path))
    assert torch.equal(made.alphas_cumprod, STABLE_DIFFUSION.alphas_cumprod)
    assert not made.config.get("clip_sample")
    assert made.config.get("timestep_spacing") == "trailing"
    assert kind is not PNDMScheduler or made.config.skip_prk_steps or "grids" in made.config
    made.set_timesteps(4)
    assert float(made.timesteps[0]) == 999


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
@pytest.mark.parametrize("kind", COMMON)
def test_other_schedulers_made_from_a_shipped_config_do_not_clip_latents(folder, kind):
    config = DDIMScheduler.load_config(folder, subfolder="scheduler")
    made = kind.from_config(config)
    assert config["clip_sample"] is made.config.clip_sample is False
    assert config["set_alpha_to_one"] is False
    assert made.config.steps_offset == 1
    assert made.config.prediction_type == config["prediction_type"]
    assert torch.equal(made.alphas_cumprod, STABLE_DIFFUSION.alphas_cumprod)


@torch.no_grad()
def test_fifty_steps_of_ddim_made_from_tiny_sds_config_are_ours():
    """The oracle is DDIM's formula; plain diffusers clips its latents if the config does not say otherwise."""
    teacher = load_teacher("assets/tiny-sd")
    pipeline, schedule = teacher.pipeline, teacher.denoiser.schedule
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prompt = "google emoji of food fruit"
    settings = {"num_inference_steps": 50, "guidance_scale": 1.0, "output_type": "latent", "height": 32, "width": 32}
    theirs = pipeline(prompt, latents=latents, **settings).images
    ours, grid = latents, torch.arange(981, 0, -20)
    conditions = teacher.encode_prompts([prompt])
    for t, s in zip(grid, [*grid[1:], torch.tensor(0)], strict=True):  # set_alpha_to_one is false: it ends at timestep 0
        prediction = teacher.denoiser(ours, t[None], conditions)
        ours = ddim_step(prediction.x_0, prediction.eps, s[None], schedule)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("clipped", [False, True])
def test_ddim_stays_on_the_trained_grid_where_the_trailing_one_leaves_it(clipped, generator):
    """3 steps of a grid of 40: 999, 674, 349. TCD with the eta of 0 that pipelines pass is DDIM; it ends at t = 0."""
    config = DDIMScheduler(clip_sample=True).config if clipped else TEACHER
    arguments = {"bounded": clipped, "trained_on_grid": True}
    scheduler = student_scheduler("ddim", config, "v_prediction", 40, steps=[3], **arguments)
    assert type(scheduler) is (GridDDIMScheduler if clipped else TCDScheduler)
    assert type(student_scheduler("ddim", config, "v_prediction", 40, steps=[4, 2, 1], **arguments)) is DDIMScheduler
    scheduler.set_timesteps(3)
    grid, schedule = scheduler.timesteps, NoiseSchedule.from_scheduler(scheduler)
    assert grid.tolist() == [999, 674, 349]
    assert torch.equal(grid, nested(3, skipping(40)))
    x = torch.randn(2, 4, 8, 8, generator=generator)
    for number in range(2):
        output = torch.randn(x.shape, generator=generator)
        prediction = to_prediction(output, x, grid[number].expand(2), "v_prediction", schedule)
        x_0 = prediction.x_0.clamp(-1, 1) if clipped else prediction.x_0
        expected = ddim_step(x_0, prediction.eps, grid[number + 1].expand(2), schedule)
        x = scheduler.step(output, grid[number], x, **({} if clipped else {"eta": 0})).prev_sample
        torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-5)
