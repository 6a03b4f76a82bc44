from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

ROOT = Path(__file__).parents[2]
REPEATS = 256


def test_tiny_sd3_opens_in_diffusers_and_its_recipe_trains_on_the_states_of_its_pipeline(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "recipes")
    from tiny_sd3 import encode_texts

    folder = ROOT / "assets" / "tiny-sd3"
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 20e6
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    prompts = ["google emoji of animal mammal", "twitter emoji of waving hand sign with medium skin tone"]
    states, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
    tokens = pipeline.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    towers = [pipeline.text_encoder, pipeline.text_encoder_2]
    torch.testing.assert_close(encode_texts(towers, tokens), (states[:, : 1 - REPEATS], pooled))
    assert not states[:, -REPEATS:].any()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(prompts, num_inference_steps=1, guidance_scale=2, output_type="pt").images
    assert images.shape == (2, 3, 64, 64)
