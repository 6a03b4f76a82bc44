"""What the scripts in benchmarks/ have in common."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from random_models import random_pipeline

FEW = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 32}
NARROW_UNET = {
    "unet": {"block_out_channels": [32] * 4, "attention_head_dim": 4, "cross_attention_dim": 32},
    "text_encoder": FEW,
}
NARROW_SD3 = {"transformer": {"num_layers": 1}, "text_encoder": FEW, "text_encoder_2": FEW}


@pytest.mark.parametrize(
    ("architecture", "narrower", "without"),
    [("sd1", NARROW_UNET, []), ("sd2-v", NARROW_UNET, []), ("sd3-medium", NARROW_SD3, ["text_encoder_3", "tokenizer_3"])],
)
def test_a_pipeline_of_random_weights_has_the_parts_of_its_architecture(architecture, narrower, without):
    pipeline = random_pipeline(architecture, narrower=narrower, without=without)
    absent = {name for name, part in pipeline.components.items() if part is None}
    assert absent <= {"safety_checker", "feature_extractor", "image_encoder", *without}
    assert {"text_encoder", "tokenizer", "vae", "scheduler"} <= set(pipeline.components) - absent
