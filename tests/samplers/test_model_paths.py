"""Where a model is looked for: folders, links, checkpoints and the hub, and what an error says about each."""

import os
import shutil

import pytest

from gendistill.samplers.loading import open_pipeline


def test_a_folder_may_have_any_name(tiny_folder, tmp_path):
    for name in ("a [1] * b?.v2", "model.safetensors", "weights.bin"):
        folder = tmp_path / name
        folder.symlink_to(tiny_folder)
        assert open_pipeline(folder).unet is not None
    name = tmp_path / os.fsdecode(b"caf\xe9")
    name.symlink_to(tiny_folder)
    with pytest.raises(ValueError, match=r"caf\\xe9: the path is not UTF-8, .* expects another name, or a link to it with one"):
        open_pipeline(name)


def test_a_dead_link_is_reported_as_one_and_the_hub_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"model models/mine is a link to .*/gone, which does not exist; expects a diffusers"):
        open_pipeline("models/mine")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("models/my-teachr", r"is no local folder \(there is models/my-teacher\), and cannot be opened .* of the hub: "),
        ("assets/tiny-sdd", r"is no local folder \(there is assets/tiny-sd"),
        ("./models/my-teachr", r"does not exist \(there is models/my-teacher\); expects a diffusers pipeline folder"),
        ("someone/something", "is no local folder, and cannot be opened as a diffusers pipeline of the hub: "),
        ("models/my-teacher", "has no model_index.json; expects a diffusers pipeline folder"),
        ("models/notes", "is a file without the suffix .safetensors; expects"),
    ],
)
def test_a_mistyped_name_is_no_local_folder_and_similar_ones_are_named(tmp_path, monkeypatch, name, sentence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "my-teacher").mkdir(parents=True)
    (tmp_path / "models" / "notes").touch()
    with pytest.raises(ValueError, match=f"^model {name} {sentence}"):
        open_pipeline(name)


@pytest.mark.parametrize("lost", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_weights_without_a_config_and_a_config_without_weights_are_named(tiny_folder, tmp_path, lost):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    (tmp_path / "copy" / "vae" / lost).unlink()
    with pytest.raises(ValueError, match=r"it has no (config\.json|\.safetensors weights) in vae"):
        open_pipeline(tmp_path / "copy")
