"""One checkpoint in the original layout, opened without the hub."""

import json
import shutil

import pytest
import torch
from original_checkpoint import save_checkpoint
from safetensors.torch import load_file, save_file

from gendistill.samplers import FewStepSampler
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.single_file import ARCHITECTURES, clip_tokenizer

PROMPTS = ["emoji of animals", "a red apple"]


@pytest.fixture(scope="module")
def checkpoint(tiny_folder, tmp_path_factory):
    """The tiny pipeline as one file."""
    file = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(open_pipeline(tiny_folder), file)
    return file


@pytest.fixture
def configs(tiny_folder, tmp_path):
    """The tiny pipeline's folder without its weights."""
    folder = tmp_path / "configs"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def generate(pipeline):
    return torch.cat(
        list(FewStepSampler(pipeline).images(PROMPTS, [5, 6], num_inference_steps=3, guidance_scale=3.0, size=(32, 32)))
    )


def test_a_checkpoint_samples_what_its_folder_samples(checkpoint, configs, tiny_folder):
    from_file = open_pipeline(checkpoint, config=str(configs))
    assert torch.equal(generate(from_file), generate(open_pipeline(tiny_folder)))


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sd3", "sd3-without-t5", "flux"])
def test_checkpoints_of_the_other_versions_sample_what_their_folders_sample(family_folder, tmp_path, family):
    from_folder = open_pipeline(family_folder(family))
    save_checkpoint(from_folder, tmp_path / "one.safetensors")
    from_file = open_pipeline(tmp_path / "one.safetensors", config=str(family_folder(family)))
    torch.testing.assert_close(generate(from_file), generate(from_folder), atol=1e-5, rtol=0)  # SD3's projection is moved


def test_a_file_of_a_transformer_alone_opens_with_the_rest_of_a_folder(family_folder, tmp_path):
    folder = family_folder("flux")
    from_folder = open_pipeline(folder)
    save_checkpoint(from_folder, tmp_path / "all.safetensors")
    weights = load_file(tmp_path / "all.safetensors")
    prefix = "model.diffusion_model."
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    save_file(own, tmp_path / "transformer.safetensors")
    from_file = open_pipeline(tmp_path / "transformer.safetensors", config=str(folder))
    assert torch.equal(generate(from_file), generate(from_folder))
    save_file(own | {"double_blocks.0.img_attn.qkv.scale_weight": torch.ones(1)}, tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match="is a scale of weights in float8; expects weights in 16 or 32 bits"):
        open_pipeline(tmp_path / "scaled.safetensors", config=str(folder))
    configs = tmp_path / "configs"
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.rmtree(configs / "tokenizer_2")
    with pytest.raises(
        ValueError,
        match=r"holds no text_encoder, text_encoder_2, VAE, tokenizer_2; .* teacher_config: a diffusers",
    ):
        open_pipeline(tmp_path / "transformer.safetensors", config=str(configs))


def test_a_stable_diffusion_3_without_its_t5_is_opened_and_says_so(family_folder, tmp_path, caplog):
    with_t5 = open_pipeline(family_folder("sd3"))
    save_checkpoint(with_t5, tmp_path / "with-t5.safetensors")
    configs = tmp_path / "configs"
    shutil.copytree(family_folder("sd3"), configs, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.rmtree(configs / "tokenizer_3")
    opened = open_pipeline(tmp_path / "with-t5.safetensors", config=str(configs))
    assert opened.text_encoder_3 is None
    assert "is opened without text_encoder_3; teacher_config, a diffusers folder with tokenizer_3, adds it" in caplog.text
    with_t5.register_modules(text_encoder_3=None, tokenizer_3=None)
    torch.testing.assert_close(generate(opened), generate(with_t5), atol=1e-5, rtol=0)


def test_a_checkpoint_that_says_that_it_predicts_v_is_scheduled_so(checkpoint, configs, tmp_path):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**load_file(checkpoint), **marks}, tmp_path / "v.safetensors")
    config = open_pipeline(tmp_path / "v.safetensors", config=str(configs)).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"


@pytest.mark.parametrize(("pad_token", "pad"), [("<|endoftext|>", 49407), ("!", 0)])
def test_clips_tokenizer_is_made_without_a_download_and_says_what_open_clips_says(pad_token, pad):
    from open_clip import get_tokenizer

    texts = ["a photo of a cat", "Emoji: red apple, 2 leaves?", "", "tea " * 100]
    theirs = get_tokenizer("ViT-B-32")(texts)
    made = clip_tokenizer(pad_token)
    ours = made(texts, padding="max_length", truncation=True, return_tensors="pt")
    padding = ours.attention_mask == 0
    assert torch.equal(ours.input_ids.masked_fill(padding, 0), theirs)
    assert (made.pad_token_id, made.model_max_length) == (pad, 77)


def test_every_architecture_that_we_carry_has_all_its_configs():
    for folder in ARCHITECTURES.iterdir():
        index = json.loads((folder / "model_index.json").read_text())
        parts = {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
        assert {name for name in parts if not name.startswith("tokenizer")} == {
            path.name for path in folder.iterdir() if path.is_dir()
        }


def without(checkpoint, prefix, file):
    save_file({name: t for name, t in load_file(checkpoint).items() if not name.startswith(prefix)}, file)
    return file


def test_what_a_checkpoint_lacks_is_named(checkpoint, tmp_path):
    file = without(checkpoint, "first_stage_model", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no VAE"):
        open_pipeline(file)


def test_a_checkpoint_that_does_not_tell_what_it_predicts_asks_for_it(checkpoint, tmp_path):
    weights = {
        name.replace("cond_stage_model.transformer", "cond_stage_model.model"): t for name, t in load_file(checkpoint).items()
    }
    save_file(weights, tmp_path / "sd2.safetensors")
    with pytest.raises(ValueError, match=r"expects teacher_config: sd2-base \(epsilon, 512 pixels\), sd2-v"):
        open_pipeline(tmp_path / "sd2.safetensors")


def test_mistakes_about_checkpoints_are_one_sentence(checkpoint, configs, tiny_folder, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    shutil.rmtree(configs / "tokenizer")
    mistakes = [
        (tmp_path / "model.ckpt", None, "is a pickle, which may run code"),
        (tmp_path / "none.safetensors", None, "does not exist"),
        (tmp_path / "broken.safetensors", None, "is no safetensors file"),
        (
            checkpoint,
            "sd3",
            "sd3 has no model_index.json; expects a diffusers folder, or one of flux-dev, pixart-sigma",
        ),
        (checkpoint, str(configs), "has no tokenizer, and its text encoder has .* tokens, not CLIP's 49408"),
        (checkpoint, "sd1", "does not fit the architecture"),
        (tiny_folder, "sd1", "expects a .safetensors checkpoint as the teacher"),
    ]
    for source, config, sentence in mistakes:
        with pytest.raises(ValueError, match=sentence) as error:
            open_pipeline(source, config=config)
        assert "\n" not in str(error.value)
