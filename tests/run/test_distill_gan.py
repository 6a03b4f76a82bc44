"""Generators that nobody listed, distilled from the command line as their users would, in fresh processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import gendistill
from PIL import Image
from safetensors.torch import save_file
from unseen_generators import UNSEEN
from warm_process import ran_warm

from gendistill.data.sources.source import open_source
from gendistill.networks import counting

ROOT = Path(__file__).parents[2]
NUM_PICTURES = 24
SETTINGS = {
    "data.cache": "cache",
    "gan.output.l1": 2,
    "gan.output.perceptual_network": "emoji",
    "gan.features.hints": 1,
    "gan.adversarial": 0.02,
    "gan.ema_decay": 0.9,
    "trainer.max_steps": 20,
    "trainer.batch_size": 4,
    "trainer.learning_rate": 1e-3,
    "trainer.warmup_steps": 0,
    "trainer.log_every": 1,
    "trainer.validate_every": 10,
    "trainer.num_validation": 8,
    "trainer.trackers": "[]",
}

# What somebody does who has nothing of the student but its program.
WITHOUT_US = """
import sys
import torch
program = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(program(inputs), sys.argv[3])
print(*[name for name in sys.modules if name.partition(".")[0] in ("gendistill", sys.argv[4])])
"""


def teacher_of(unseen, place):
    """As if it had been trained: its images differ, and are no larger than images are."""
    network = unseen.build(place)
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            parameter.data.mul_(1.3)
    save_file(network.state_dict(), place / "weights.safetensors")
    return network


def ran(arguments, place, name):
    process = gendistill([*arguments, "--device", "cpu"], place / f"{name}.txt", folder=place)
    assert process.wait() == 0, process.text
    return process.text


@pytest.fixture(scope="module", params=UNSEEN, ids=lambda unseen: unseen.module)
def distilled(request, tmp_path_factory):
    """A folder with a user's module, weights, perhaps images, and the run that came of them; what the run printed."""
    unseen = request.param
    place = tmp_path_factory.mktemp(unseen.module)
    teacher = teacher_of(unseen, place)
    (place / "arguments.json").write_text(json.dumps(unseen.arguments))
    from_images = len(unseen.input_shape) == 3
    given = {**SETTINGS, "generator.input_shape": list(unseen.input_shape)}
    if from_images:
        (place / "images").mkdir()
        for number, sample in zip(range(NUM_PICTURES), open_source(ROOT / "assets/emoji/heldout-*.tar.gz"), strict=False):
            sample.image.save(place / "images" / f"{number:02}.png")
    arguments = ["distill", f"{unseen.module}:{unseen.class_name}", "--method", "gan", "--compress", "4", "--out", "run"]
    arguments += ["--weights", "weights.safetensors", "--teacher-config", "arguments.json"]
    arguments += ["--data", "images"] * from_images + [f"--set={name}={value}" for name, value in given.items()]
    return unseen, place, teacher, ran(arguments, place, "distill")


def test_multiply_accumulates_and_parameters_are_a_quarter_within_10_percent(distilled):
    unseen, place, teacher, _ = distilled
    described = json.loads((place / "run" / "student" / "gan.json").read_text())["student"]
    assert described["teacher_parameters"] == counting.parameters(teacher)
    assert described["teacher_macs"] == counting.macs(teacher, unseen.inputs(1))
    assert described["macs"] == pytest.approx(described["teacher_macs"] / 4, rel=0.1)
    assert described["parameters"] == pytest.approx(described["teacher_parameters"] / 4, rel=0.1)
    weights = place / "run" / "student" / "generator" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < (place / "weights.safetensors").stat().st_size / 2.5


def test_the_loss_falls(distilled):
    _, place, _, _ = distilled
    lines = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("l1", "perceptual", "hints"):
        losses = [line[name] for line in lines if name in line]
        assert len(losses) == SETTINGS["trainer.max_steps"]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]), name


def test_what_was_found_out_is_told(distilled):
    unseen, _, _, printed = distilled
    assert f"{unseen.class_name}: {'image' if len(unseen.input_shape) == 3 else 'noise'}" in printed
    assert "no discriminator" in printed
    assert "matched layers:" in printed
    assert "run/student: gan student; " in printed
    assert "Traceback" not in printed


def test_the_student_opens_in_a_fresh_process_and_samples(distilled):
    unseen, place, _, _ = distilled
    arguments = ["sample", "run/student", "--out", "sampled"]
    arguments += ["--input", "images"] if len(unseen.input_shape) == 3 else ["--num", "3"]
    ran(arguments, place, "sample")
    files = sorted((place / "sampled").glob("*.png"))
    assert len(files) == (NUM_PICTURES if len(unseen.input_shape) == 3 else 3)
    generated = [np.asarray(Image.open(file)) for file in files]
    assert all(image.shape == (*unseen.output_shape[1:], 3) for image in generated)
    assert generated[0].std() > 0
    assert (generated[0] != generated[1]).any()


def test_its_program_opens_without_gendistill_and_without_the_users_module(distilled, tmp_path):
    unseen, place, _, _ = distilled
    inputs = unseen.inputs(3)[0].clamp(-1, 1)
    torch.save(inputs, tmp_path / "inputs.pt")
    program = place / "run" / "student" / "generator.pt2"
    process = ran_warm(WITHOUT_US, program, "inputs.pt", "outputs.pt", unseen.module, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [], "neither is imported"
    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    assert outputs.shape == (3, *unseen.output_shape)
    assert outputs.isfinite().all()
    assert (outputs[0] != outputs[1]).any()
