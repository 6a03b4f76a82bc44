"""`data.resolution`: a student is trained, validated, exported and sampled at one size."""

import json

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from tiny_runs import logged, settings_of

from gendistill.diffusion.teacher import load_teacher
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of


def images_in(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("food")
    return folder


@pytest.mark.parametrize("lora", [False, True], ids=["full weights, images", "LoRA, prompts and trajectories"])
def test_a_student_has_the_size_that_it_was_trained_at(tiny_folder, tmp_path, lora):
    size = {"data__resolution": 64, "trainer__max_steps": 1}
    if lora:
        changes = {
            "lora__enabled": True,
            "lora__rank": 2,
            "align__weight": 0.1,
            "align__trajectories": 2,
            "align__trajectory_steps": 2,
        }
    else:
        changes = {"data__path": str(images_in(tmp_path / "images")), "data__prompts": None}
    result = distill(settings_of(tmp_path, tiny_folder, "run", **size, **changes))
    grid = Image.open(next((tmp_path / "run" / "samples").glob("*.png")))
    assert grid.height == 64 + 2 * 2  # a row of validated images, with its margin
    student = result.student_folder
    sampler = FewStepSampler.from_pretrained(student)
    assert sampler.size == (64, 64)
    assert next(sampler.images(["food"], [0])).shape == (1, 3, 64, 64)
    card = (student / "README.md").read_text()
    if lora:
        assert "height=64, width=64" in card
        index = logged(tmp_path / "run", "data")[0]
        assert index["trajectories"] == 2
    else:
        assert json.loads((student / "unet" / "config.json").read_text())["sample_size"] == 16
        plain = DiffusionPipeline.from_pretrained(student)
        assert plain("food", num_inference_steps=2, guidance_scale=1, output_type="np").images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd1", {"data__resolution": "32x48"}),
        ("sdxl", {"data__resolution": "32x48"}),
        ("sdxl", {"data__resolution": "32x48", "lora__enabled": True, "lora__rank": 2}),
        ("unconditional", {"data__resolution": "16x24", "data__prompts": None}),
        ("unconditional", {"data__prompts": None}),  # a teacher of such a size
    ],
)
def test_a_student_of_images_that_are_not_square_has_their_size(family_folder, tmp_path, family, changes):
    """Trained on images and on trajectories, and sampled by plain diffusers, which has the size from the folder or its card."""
    teacher, (width, height) = family_folder(family), (32, 48) if family != "unconditional" else (16, 24)
    if "data__resolution" not in changes:
        pipeline = DiffusionPipeline.from_pretrained(teacher)
        pipeline.unet.register_to_config(sample_size=[height, width])
        pipeline.save_pretrained(teacher := tmp_path / "teacher")
    align = {"align__weight": 0.1, "align__trajectories": 2, "align__trajectory_steps": 2, "trainer__max_steps": 1}
    changes = {"data__path": str(images_in(tmp_path / "images")), "data__prompts": None, **align, **changes}
    result = distill(settings_of(tmp_path, teacher, "run", **changes))
    grid = Image.open(next((tmp_path / "run" / "samples").glob("*.png")))
    assert grid.height == height + 2 * 2  # a row of validated images, with its margin
    student = result.student_folder
    sampler = FewStepSampler.from_pretrained(student)
    assert sampler.size == (height, width)
    assert next(sampler.images(["food"], [0])).shape == (1, 3, height, width)
    in_card = f"height={height}, width={width}" in (student / "README.md").read_text()
    assert in_card == (family == "sdxl")
    if not in_card:
        plain = DiffusionPipeline.from_pretrained(student)
        call = {"prompt": "food", "guidance_scale": 1} if family == "sd1" else {}
        assert plain(**call, num_inference_steps=2, output_type="np").images.shape == (1, height, width, 3)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "unconditional"])
def test_a_resolution_is_that_of_the_pipeline_and_a_multiple_that_its_network_can_halve(family_folder, family):
    teacher = load_teacher(family_folder(family), size=(64, 64))
    assert teacher.size == (64, 64)
    assert family_of(teacher.pipeline).size(teacher.pipeline) == FewStepSampler(teacher.pipeline).size == (64, 64)
    images = next(FewStepSampler(teacher.pipeline).images(["food"], [0], num_inference_steps=1))
    assert images.shape[-2:] == (64, 64)
    with pytest.raises(ValueError, match=r"^data\.resolution 37: expects a multiple of \d+, such as 3\d or \d+$"):
        load_teacher(family_folder(family), size=(37, 37))
