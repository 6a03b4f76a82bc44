import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from gendistill.diffusion.pipeline import load_teacher


def test_prompts_are_encoded_as_the_pipeline_encodes_them(teacher):
    prompts = ["food", "emoji of animals", ""]
    with torch.no_grad():
        expected, empty = teacher.pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert torch.equal(teacher.encode_prompts(prompts).prompt_embeds, expected)
    torch.testing.assert_close(teacher.encode_prompts([""]).prompt_embeds, empty[:1])


def test_nothing_in_a_teacher_learns(teacher):
    parts = (teacher.pipeline.unet, teacher.pipeline.vae, teacher.pipeline.text_encoder)
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    assert not any(part.training for part in parts)


def test_pickled_weights_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be opened as a diffusers pipeline"):
        load_teacher(tmp_path / "pickled")


def test_another_family_is_refused_by_name(tmp_path):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    network = UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="family DDPMPipeline is not supported; takes StableDiffusionPipeline"):
        load_teacher(tmp_path)
