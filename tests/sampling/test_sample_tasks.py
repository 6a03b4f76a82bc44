"""`gendistill sample` from images, in masks, under controls, and of few-step models of others, in fresh processes."""

import shutil

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from fresh_process import ran
from PIL import Image
from tiny_add_ons import save_control
from tiny_runs import settings_of

from gendistill.run.distill import distill


@pytest.fixture(scope="module")
def student(tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("student")
    return distill(settings_of(place, tiny_folder, "run", steps=[4], trainer__max_steps=1)).student_folder


@pytest.fixture
def sample(tmp_path):
    """sample(model, ...): what it said on standard error, and the image, or its exit code and the sentence."""

    def run(model, *given):
        out = tmp_path / "out.npy"
        done = ran("sample", model, "--prompt", "food", "--out", out, *given)
        told = " ".join(done.stderr.split())
        return told, np.load(out) if done.returncode == 0 else done.returncode

    return run


@pytest.fixture
def files(tiny_folder, tmp_path):
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    image = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], (1, 32)), np.full((32, 32), 90, np.uint8)], -1)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(np.repeat(255 * (np.arange(32) >= 16), 32).reshape(32, 32).T.astype(np.uint8)).save(tmp_path / "mask.png")
    save_control(UNet2DConditionModel.from_pretrained(tiny_folder / "unet"), tmp_path / "edges")
    return tmp_path


def test_a_student_begins_at_a_image_and_generates_where_a_mask_is_white(student, sample, files):
    image, mask = str(files / "image.png"), str(files / "mask.png")
    told, plain = sample(student)
    assert "warning" not in told
    _, half = sample(student, "--input", image, "--strength", "0.5")
    _, masked = sample(student, "--input", image, "--mask", mask, "--strength", "1")
    assert plain.shape == half.shape == masked.shape == (1, 32, 32, 3)
    assert np.abs(plain - half).max() > 0.01
    assert np.abs(half - masked).max() > 0.01
    _, controlled = sample(student, "--control", f"{files / 'edges'}={image}")
    assert np.abs(plain - controlled).max() > 0.01


def test_a_student_that_is_not_sampled_as_it_wants_says_so(student, sample):
    told, _ = sample(student, "--steps", "3", "--guidance-scale", "5")
    assert "steps 3: the student was made for 4" in told
    assert "guidance_scale 5: guidance is baked into the student" in told


def test_a_model_of_others_is_sampled_as_its_name_says(tiny_folder, sample, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "my-lcm-lora-merged")
    assert ": 1 image of 4 steps" in sample(tmp_path / "my-lcm-lora-merged")[0]
    assert ": 1 image of 2 steps" in sample(tiny_folder, "--like", "Hyper-SD15-2steps-lora")[0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--mask", "m.png"], "--mask m.png: expects --input, the image to inpaint"),
        (["--input", "none.png"], "--input none.png"),
        (["--control", "edges"], "--control 'edges': expects FOLDER=IMAGE"),
        (["--like", "sd15"], "like sd15: expects the name of a file of one of Hyper-SD"),
    ],
)
def test_mistakes_are_one_sentence(student, sample, given, sentence):
    told, code = sample(student, *given)
    assert code == 2
    assert sentence in told
    assert "Traceback" not in told


def test_a_student_keeps_within_memory(student, sample):
    told, plain = sample(student)
    assert "placement" not in told
    told, placed = sample(student, "--memory", "0.000001")
    assert "placement sequential-offload" in told
    np.testing.assert_allclose(placed, plain, atol=1e-4)
