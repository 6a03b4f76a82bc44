"""`gendistill grid`: the timesteps that it finds stray less than trailing's, in a fresh process and from Python."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from fresh_process import gendistill

from gendistill.evaluation.teacher_plans import SEARCHED, teacher_plans, teacher_scheduler
from gendistill.samplers import FewStepSampler
from gendistill.sampling.find_grid import find_grids, search_grids, searchable


def test_a_grid_begins_at_the_noise_and_strays_no_more_than_trailings(teacher):
    found = search_grids(teacher, ["food", "animals"] * 4, [8, 5, 4, 2, 1], 2.0)
    for count, grid in found.items():
        assert grid.timesteps[0] == 999
        assert len(grid.timesteps) == count
        assert grid.timesteps == sorted(set(grid.timesteps), reverse=True)
        assert grid.error <= grid.trailing_error
    assert found[1].timesteps == [999]
    assert found[1].error == found[1].trailing_error
    errors = [found[count].error for count in (8, 5, 4, 2, 1)]
    assert errors == sorted(errors)


def test_few_steps_of_a_found_grid_are_nearer_to_many_than_few_of_the_trailing_one(tiny_folder, teacher):
    """On trajectories that the search has not seen, sampled by the pipeline itself."""
    grid = search_grids(teacher, ["food"] * 16, [3], 2.0)[3].timesteps
    sampler = FewStepSampler.from_pretrained(tiny_folder)
    generated = {}
    for name, steps, timesteps in (("many", 40, None), ("found", 3, grid), ("trailing", 3, None)):
        sampler.pipeline.scheduler = teacher_scheduler("ddim", sampler.pipeline, timesteps)
        latents = sampler.latents(["food"] * 16, range(16), num_inference_steps=steps, guidance_scale=2.0)
        generated[name] = torch.cat(list(latents))
    errors = [(generated[name] - generated["many"]).square().mean().item() for name in ("found", "trailing")]
    assert errors[0] < errors[1]


def test_it_is_found_from_the_command_line(place):
    options = ["grid", "teacher", "--prompts", "prompts.txt", "--steps", "4,2", "-w", "2"]
    plain, as_json = (gendistill([*options, *more], place / f"{len(more)}.txt", folder=place) for more in ([], ["--json"]))
    assert (plain.wait(), as_json.wait()) == (0, 0), plain.text
    found = json.loads(as_json.text[as_json.text.index("{") : as_json.text.rindex("}") + 1])
    assert list(found) == ["4", "2"]
    for count, grid in found.items():
        assert f"{count} steps: {grid['timesteps']} (error {grid['error']:.3f}; of the trailing grid" in plain.text
    assert "progressive.grid" in plain.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((["food"], [41], 1.0), "steps 41: expects at most 40, the number of candidate timesteps"),
        ((None, [4], 1.0), "--prompt and --prompts: expects one of them"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(tiny_folder, arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        find_grids(str(tiny_folder), *arguments)


def test_a_model_without_guidance_refuses_a_scale_and_knows_its_own_prompts(family_folder):
    folder = str(family_folder("unconditional"))
    assert find_grids(folder, None, [2], 1.0)[2].timesteps[0] == 999
    with pytest.raises(ValueError, match=r"^guidance_scale 2: .* has no guidance; expects 1$"):
        find_grids(folder, None, [2], 2.0)


def test_a_pipeline_that_cannot_teach_is_evaluated_without_a_search(tiny_folder):
    sampler = FewStepSampler.from_pretrained(tiny_folder)
    assert any(solver == SEARCHED for solver, _, _ in teacher_plans(sampler))
    noise_alone = DDIMScheduler.from_config(sampler.pipeline.scheduler.config, rescale_betas_zero_snr=True)
    sampler.pipeline.scheduler = noise_alone  # from which an epsilon network says nothing of the image
    assert not searchable(sampler.pipeline)
    assert not any(solver == SEARCHED for solver, _, _ in teacher_plans(sampler))
