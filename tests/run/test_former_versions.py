"""What version 0.1 wrote still opens: runs that were interrupted, their settings, and students of every kind.

`files_of_0_1/runs.tar.xz` holds runs of 4 steps that were killed after the second, and the students that the same runs left
where nothing disturbed them.
"""

import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gendistill.gan.gan_folder import open_gan
from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers.few_step import FewStepSampler

FILES = Path(__file__).parent / "files_of_0_1" / "runs.tar.xz"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("run", "student", "weights"),
    [
        ("aligned", "student", "pytorch_lora_weights.safetensors"),
        ("halved", "student-2", "pytorch_lora_weights.safetensors"),
        ("gan", "student", "generator/diffusion_pytorch_model.safetensors"),
    ],
)
def test_an_interrupted_run_resumes_to_the_weights_that_it_would_have_had(folder, run, student, weights, caplog):
    config = load_config(folder / run / "config.yaml")
    distill(config, resume=True)
    expected = load_file(folder / f"{run}-student" / weights)
    for name, tensor in load_file(folder / run / student / weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    former = {"aligned": "own_share", "halved": "dialect_steps", "gan": "setting partner"}[run]
    assert any(former in message and "is now called" in message for message in caplog.messages)


def test_students_sample_images(folder):
    for student in ("aligned-student", "halved-student"):
        sampler = FewStepSampler.from_pretrained(folder / student, device="cpu")
        (images,) = sampler.images(["food"], [0], num_inference_steps=2)
        assert images.shape[1:] == (3, 32, 32)
    sampler = GeneratorSampler.of(open_gan(folder / "gan-student"))
    (images,) = sampler.images([sampler.class_names[0]], [0], num_inference_steps=1)
    assert images.shape[1:] == (3, 16, 16)


def test_former_names_of_settings_and_of_their_values_are_read_with_a_warning_that_names_the_new_ones(tmp_path, caplog):
    file = tmp_path / "config.yaml"
    align = {"start_share": 0.5, "own_share": 0.1, "partner": "mutual", "partner_weight": 2.0}
    settings = {
        "method": "latent_alignment",
        "align": align,
        "decoder": {"target": "pictures"},
        "gan": {"partner": "student"},
        "progressive": {"dialect_steps": 3, "stages": {"imitation": {"max_steps": 5}}},
    }
    file.write_text(yaml.safe_dump(settings))
    config = load_config(file, {"align.own_share": 0.2})
    assert (config.align.start_fraction, config.align.on_policy_fraction) == (0.5, 0.2)
    assert (config.align.peer, config.align.peer_weight, config.gan.peer) == ("mutual", 2.0, "student")
    assert (config.decoder.target, config.progressive.prediction_type_steps) == ("images", 3)
    assert config.progressive.stages == {"guidance_distillation": {"max_steps": 5}}
    assert "setting own_share is now called on_policy_fraction; the old name is still read" in caplog.messages
    assert "pictures of setting target is now called images; the old name is still read" in caplog.messages
    with pytest.raises(ValueError, match="own_share and on_policy_fraction are one setting"):
        load_config(None, {"align.own_share": 0.2, "align.on_policy_fraction": 0.3})
