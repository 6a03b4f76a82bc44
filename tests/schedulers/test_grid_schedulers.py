"""The schedulers that are ours: they step as loops written by hand, and live in diffusers' pipelines like its own."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from gendistill.schedulers import GridDDIMScheduler, NoiseSchedule, StochasticDDIMScheduler, to_prediction, trailing

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {**SCALED_LINEAR, "rescale_betas_zero_snr": True}
FIRST_ORDER = {"solver_order": 1, "timestep_spacing": "trailing", "final_sigmas_type": "zero"}
GRIDS = [[999, 900, 400, 50], [999, 310], [700]]
OURS = [GridDDIMScheduler, StochasticDDIMScheduler]


def network(x_t, t):
    """Some smooth function of x_t and t."""
    return torch.sin(x_t + float(t) / 200) + 0.2 * x_t.roll(1, 0)


def sample(scheduler, x, num_inference_steps, **settings):
    scheduler.set_timesteps(num_inference_steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **settings).prev_sample
    return x


def ddim(x, grid, prediction_type, schedule):
    for t, s in zip(grid, [*grid[1:], -1], strict=True):
        prediction = to_prediction(network(x, t), x, torch.tensor(t), prediction_type, schedule)
        x = schedule.alpha(s) * prediction.x_0 + schedule.sigma(s) * prediction.eps
    return x


@pytest.fixture
def x_t(generator):
    return torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("grid", GRIDS, ids=len)
@pytest.mark.parametrize(
    ("prediction_type", "config"), [("epsilon", SCALED_LINEAR), ("sample", ZERO_SNR), ("v_prediction", ZERO_SNR)]
)
def test_the_grid_scheduler_makes_ddim_steps_along_the_grid_of_its_config(prediction_type, config, grid, x_t):
    scheduler = GridDDIMScheduler(**config, prediction_type=prediction_type, clip_sample=False, grids=GRIDS)
    expected = ddim(x_t, grid, prediction_type, NoiseSchedule.from_scheduler(scheduler))
    torch.testing.assert_close(sample(scheduler, x_t, len(grid)), expected)
    assert scheduler.timesteps.tolist() == grid


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 5, 8, 10, 20, 25, 50])
@pytest.mark.parametrize("clip_sample", [False, True])
def test_without_grids_it_is_diffusers_trailing_ddim_where_steps_divide_the_timesteps(num_inference_steps, clip_sample, x_t):
    ours = GridDDIMScheduler(**SCALED_LINEAR, clip_sample=clip_sample)
    theirs = DDIMScheduler(**SCALED_LINEAR, clip_sample=clip_sample, timestep_spacing="trailing")
    torch.testing.assert_close(
        sample(ours, x_t, num_inference_steps), sample(theirs, x_t, num_inference_steps), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("num_inference_steps", [1, 2, 3, 6, 7, 12, 13, 16, 32, 64])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_at_any_number_of_steps_it_is_diffusers_dpm_solver_of_first_order(prediction_type, num_inference_steps, x_t):
    config = {**SCALED_LINEAR, "prediction_type": prediction_type}
    theirs = DPMSolverMultistepScheduler(**config, **FIRST_ORDER)
    ours = sample(GridDDIMScheduler(**config, clip_sample=False), x_t, num_inference_steps)
    torch.testing.assert_close(ours, sample(theirs, x_t, num_inference_steps), atol=1e-4, rtol=1e-4)
    assert torch.equal(theirs.timesteps, trailing(num_inference_steps))


@pytest.mark.parametrize("grid", GRIDS, ids=len)
def test_diffusers_dpm_solver_of_first_order_makes_the_same_steps_when_it_is_given_the_grid(grid, x_t):
    theirs = DPMSolverMultistepScheduler(**SCALED_LINEAR, **FIRST_ORDER)
    theirs.set_timesteps(timesteps=grid)
    expected = x_t
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, t), t, expected).prev_sample
    ours = sample(GridDDIMScheduler(**SCALED_LINEAR, clip_sample=False, grids=GRIDS), x_t, len(grid))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [*GRIDS, trailing(5).tolist()], ids=len)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_stochastic_scheduler_goes_two_grid_steps_forward_and_one_back_by_noise(prediction_type, grid, x_t):
    scheduler = StochasticDDIMScheduler(**SCALED_LINEAR, prediction_type=prediction_type, clip_sample=False, grids=GRIDS)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    ours = sample(scheduler, x_t, len(grid), generator=torch.Generator().manual_seed(5))

    x, generator, times = x_t, torch.Generator().manual_seed(5), [*grid, -1, -1]
    for t, back, forward in zip(times, times[1:], times[2:], strict=False):
        prediction = to_prediction(network(x, t), x, torch.tensor(t), prediction_type, schedule)
        x = schedule.alpha(forward) * prediction.x_0 + schedule.sigma(forward) * prediction.eps
        if back != forward:
            kept = schedule.alpha(back) / schedule.alpha(forward)
            spread = (schedule.sigma(back) ** 2 - (kept * schedule.sigma(forward)) ** 2).sqrt()
            x = kept * x + spread * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("kind", OURS)
def test_a_scheduler_is_saved_loaded_and_made_from_any_other_config(kind, tmp_path, x_t):
    scheduler = kind(**ZERO_SNR, prediction_type="v_prediction", clip_sample=False, grids=GRIDS)
    scheduler.save_pretrained(tmp_path)
    teacher = DDIMScheduler(**ZERO_SNR, prediction_type="v_prediction", clip_sample=False)
    for other in (kind.from_pretrained(tmp_path), kind.from_config(teacher.config, grids=GRIDS)):
        assert [list(grid) for grid in other.config.grids] == GRIDS
        settings = {"generator": torch.Generator().manual_seed(0)}, {"generator": torch.Generator().manual_seed(0)}
        assert torch.equal(sample(scheduler, x_t, 4, **settings[0]), sample(other, x_t, 4, **settings[1]))


@pytest.mark.parametrize("kind", OURS)
def test_a_pipeline_folder_opens_with_the_scheduler_and_samples_image_by_image(kind, tiny_folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, clip_sample=False, grids=GRIDS)
    pipeline.save_pretrained(tmp_path)
    opened = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(opened.scheduler) is kind

    def generate(pipeline, seeds, **settings):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(
            ["food"] * len(seeds), generator=generators, output_type="latent", guidance_scale=1.0, **settings
        ).images

    both = generate(pipeline, [1, 2], num_inference_steps=4)
    torch.testing.assert_close(generate(opened, [2], num_inference_steps=4), both[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(generate(opened, [1, 2], timesteps=GRIDS[0]), both, atol=1e-4, rtol=1e-4)


def test_half_precision_samples_stay_in_half_precision_and_are_stepped_in_float32(x_t):
    scheduler = GridDDIMScheduler(**SCALED_LINEAR, clip_sample=False)
    scheduler.set_timesteps(4)
    output = scheduler.step(x_t.half(), 999, x_t.half())
    assert output.prev_sample.dtype == torch.float16
    exact = scheduler.step(x_t.half().double(), 999, x_t.half().double()).prev_sample
    torch.testing.assert_close(output.prev_sample, exact.half())
    tuple_ = scheduler.step(x_t.half(), 999, x_t.half(), return_dict=False)
    assert torch.equal(tuple_[0], output.prev_sample)


@pytest.mark.parametrize(
    ("grids", "complaint"),
    [
        ([[999, 999]], r"^grids: \[999, 999\]; expects descending timesteps from 0 to 999$"),
        ([[1000, 5]], r"^grids: \[1000, 5\]; expects descending timesteps"),
        ([[5, -1]], r"^grids: \[5, -1\]; expects descending timesteps"),
        ([[999, 4], [999, 5]], r"^grids: lengths \[2, 2\]; expects one grid of each length$"),
    ],
)
def test_grids_that_cannot_be_sampled_are_refused_in_one_sentence(grids, complaint):
    with pytest.raises(ValueError, match=complaint):
        GridDDIMScheduler(grids=grids)
