import shutil

import pytest
import torch
from diffusers import DDPMScheduler

from gendistill.diffusion.teacher import load_teacher, teacher_of
from gendistill.samplers.loading import open_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_prompts_are_encoded_as_the_pipeline_encodes_them(teacher):
    prompts = ["food", "emoji of animals", ""]
    with torch.no_grad():
        expected, empty = teacher.pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert torch.equal(teacher.encode_prompts(prompts)["prompt_embeds"], expected)
    torch.testing.assert_close(teacher.encode_prompts([""])["prompt_embeds"], empty[:1])


def test_nothing_in_a_teacher_learns(teacher):
    parts = (teacher.pipeline.unet, teacher.pipeline.vae, teacher.pipeline.text_encoder)
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    assert not any(part.training for part in parts)


def test_what_a_teachers_scheduler_does_and_its_student_does_not_is_reported(family_folder, caplog):
    pipeline = open_pipeline(family_folder("unconditional"))
    assert teacher_of(pipeline, "mine").not_in_student == ()
    pipeline.scheduler = DDPMScheduler(thresholding=True)
    [sentence] = teacher_of(pipeline, "mine").not_in_student
    assert sentence == "the student is trained and sampled without the dynamic thresholding of the teacher's scheduler"
    assert f"teacher mine: {sentence}" in caplog.text


def test_pickled_weights_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be opened as a diffusers pipeline"):
        load_teacher(tmp_path / "pickled")


def test_another_family_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(ValueError, match="family KolorsPipeline is not supported; expects StableDiffusionPipeline, StableDiff"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder", "scheduler"])
def test_a_part_that_is_missing_is_named(tiny_folder, tmp_path, part):
    shutil.copytree(tiny_folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / part)
    with pytest.raises(ValueError, match=f"it has no {part}, which its model_index.json lists as a "):
        load_teacher(tmp_path / "half")


def test_code_that_comes_with_a_folder_is_not_run(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "coded")
    index = tmp_path / "coded" / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '["pipeline", "Mine"]'))
    (tmp_path / "coded" / "pipeline.py").write_text("open('owned', 'w')")
    with pytest.raises(ValueError, match="is not supported; expects StableDiffusionPipeline"):
        load_teacher(tmp_path / "coded")


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_teacher_from_the_hub_knows_its_commit(tiny_folder, tmp_path, monkeypatch, revision):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    weights = repository / "snapshots" / COMMIT / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load_teacher("someone/tiny", revision=revision).commit == COMMIT
    with pytest.raises(ValueError, match="model someone/tiny is no local folder, and cannot be opened as a diffusers pipeline"):
        load_teacher("someone/tiny", revision="another")
