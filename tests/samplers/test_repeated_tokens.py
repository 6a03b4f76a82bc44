import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0
from torch import nn

from gendistill.samplers.families.repeated_tokens import knows_repeated_tokens, last_token_repeated

REPEATS = 256


def random_transformer(**options):
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8}
    dims = {"joint_attention_dim": 24, "caption_projection_dim": 16, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
    transformer = SD3Transformer2DModel(num_attention_heads=2, **sizes, **dims, **options)
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return transformer.double()  # the function is the same: float32 differs by rounding alone


@pytest.mark.parametrize("options", [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}])
def test_one_token_stands_for_256_identical_ones_in_values_and_gradients(options):
    transformer = random_transformer(**options)
    states = nn.functional.pad(torch.randn(2, 5, 24).double(), (0, 0, 0, REPEATS))
    inputs = {"pooled_projections": torch.randn(2, 12).double(), "timestep": torch.tensor([100.0, 900.0])}
    latents = torch.randn(2, 4, 8, 8).double()

    def output_and_gradients(text):
        output = transformer(latents, text, **inputs).sample
        return [output, *torch.autograd.grad(output.square().mean(), transformer.parameters(), allow_unused=True)]

    processors = transformer.attn_processors
    expected = output_and_gradients(states)
    with last_token_repeated(transformer, REPEATS):
        collapsed = output_and_gradients(states[:, : 1 - REPEATS])
    alone = transformer(latents, states[:, : 1 - REPEATS], **inputs).sample
    torch.testing.assert_close(collapsed, expected, rtol=1e-9, atol=1e-11)
    assert (alone - expected[0]).abs().max() > 1e-2, "without the bias the function differs"
    assert transformer.attn_processors == processors


def test_processors_that_know_repeated_tokens_change_nothing_without_the_argument():
    transformer = random_transformer(qk_norm="rms_norm", dual_attention_layers=(0,))
    states = nn.functional.pad(torch.randn(2, 5, 24).double(), (0, 0, 0, REPEATS))
    inputs = {"pooled_projections": torch.randn(2, 12).double(), "timestep": torch.tensor([100.0, 900.0])}
    latents = torch.randn(2, 4, 8, 8).double()
    expected = transformer(latents, states, **inputs).sample
    assert knows_repeated_tokens(transformer)
    assert torch.equal(transformer(latents, states, **inputs).sample, expected)
    one = {"encoder_hidden_states": states[:, : 1 - REPEATS], "joint_attention_kwargs": {"repeats": REPEATS}}
    transformer.enable_gradient_checkpointing()
    output = transformer.train()(latents, **one, **inputs).sample
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-11)
    output.sum().backward()  # computes the blocks again
    transformer.transformer_blocks[0].attn.set_processor(FusedJointAttnProcessor2_0())
    assert not knows_repeated_tokens(transformer)
