"""Smaller diffusion transformers, made of their teacher's blocks and heads."""

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DModel,
)

from gendistill.methods.compression import compressed_config, macs_fraction, matched_blocks, pruning_for
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.transformer_pruning import (
    fewer_blocks_config,
    matching_config,
    on_meta,
    stacks_of,
    teacher_ends,
)
from gendistill.samplers.families import family_called

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
WITH_CAPTIONS = {**HEADS, "caption_channels": 16, "cross_attention_dim": 16, "sample_size": 8}
NETWORKS = {
    "sd3": ("StableDiffusion3Pipeline", SD3Transformer2DModel, {"num_layers": 6, "caption_projection_dim": 16}),
    "sd3.5": (
        "StableDiffusion3Pipeline",
        SD3Transformer2DModel,
        {"num_layers": 7, "caption_projection_dim": 16, "dual_attention_layers": (0, 1, 2, 3), "qk_norm": "rms_norm"},
    ),
    "flux": ("FluxPipeline", FluxTransformer2DModel, {"num_layers": 4, "num_single_layers": 4, "guidance_embeds": True}),
    "pixart": ("PixArtSigmaPipeline", PixArtTransformer2DModel, {"num_layers": 4, **WITH_CAPTIONS}),
    "sana": (
        "SanaPipeline",
        SanaTransformer2DModel,
        {"num_layers": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, **WITH_CAPTIONS},
    ),
    "dit": ("DiTPipeline", DiTTransformer2DModel, {"num_layers": 4, "sample_size": 8, "out_channels": 8}),
    "auraflow": (
        "AuraFlowPipeline",
        AuraFlowTransformer2DModel,
        {"num_mmdit_layers": 4, "num_single_dit_layers": 4, "caption_projection_dim": 16, "pos_embed_max_size": 64},
    ),
    "lumina2": (
        "Lumina2Pipeline",
        Lumina2Transformer2DModel,
        {"num_layers": 4, "num_refiner_layers": 1, "hidden_size": 16, "num_kv_heads": 1, "cap_feat_dim": 16},
    ),
}
SMALL = {
    SD3Transformer2DModel: {"sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 16},
    FluxTransformer2DModel: {"in_channels": 16, "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 4)},
    SanaTransformer2DModel: {"in_channels": 4, "out_channels": 4},
    AuraFlowTransformer2DModel: {"sample_size": 8, "joint_attention_dim": 16},
    Lumina2Transformer2DModel: {"sample_size": 8, "in_channels": 4, "axes_dim_rope": (4, 2, 2), "axes_lens": (300, 16, 16)},
}
POOLED = {SD3Transformer2DModel: 8, FluxTransformer2DModel: 8}


def network_of(name, **changes):
    """A tiny network with weights in place of zeros, and its family."""
    pipeline, kind, settings = NETWORKS[name]
    pooled = {"pooled_projection_dim": POOLED[kind]} if kind in POOLED else {}
    heads = HEADS if kind is not Lumina2Transformer2DModel else {"num_attention_heads": 2}
    torch.manual_seed(0)
    network = kind(**{**heads, **SMALL.get(kind, {}), **pooled, **settings, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.15)
    return network, family_called(pipeline)


def predictions_of(family, batch=2):
    """predict(network): its output for noise in place of data and prompts, always the same."""

    def predict(network):
        example = family.example_inputs(network.config, batch, (8, 8), torch.float32)
        generator = torch.Generator().manual_seed(1)

        def filled(value):
            if isinstance(value, dict):
                return {name: filled(inner) for name, inner in value.items()}
            if not isinstance(value, torch.Tensor):
                return value
            if value.is_floating_point():
                return torch.randn(value.shape, generator=generator)
            return torch.ones(value.shape, dtype=value.dtype)

        inputs = {name: filled(value) for name, value in example.items()}
        inputs["timestep"] = inputs["timestep"].abs()
        with torch.no_grad():
            return network(**{**inputs, **positions(family, network)}).sample

    return predict


def positions(family, network):
    """Position ids of Flux: those of the family, which the meta device has without values."""
    if "img_ids" not in family.example_inputs(network.config, 1, (8, 8), torch.float32):
        return {}
    return {
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(512, 3),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_that_do_nothing_are_removed_and_the_output_is_the_same(name, tmp_path):
    network, family = network_of(name)
    predict = predictions_of(family)
    idle = {"sd3": {1, 4}, "sd3.5": {0, 2, 5}, "dit": {1, 2}}.get(name, {0, 2})
    for stack in stacks_of(network):
        for number in idle:
            for parameter in getattr(network, stack)[number].parameters():
                torch.nn.init.zeros_(parameter)
    student = matching_config(network, fewer_blocks_config(network), lambda: predict(network))
    assert student.fresh == []
    for stack in stacks_of(network):
        kept = {number for path, number in student.kept.items() if path.startswith(f"{stack}.")}
        assert set(range(len(getattr(network, stack)))) - kept == idle
    torch.testing.assert_close(predict(student.network), predict(network), rtol=0, atol=1e-5)
    student.network.save_pretrained(tmp_path)
    opened = type(network).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(predict(opened), predict(student.network), rtol=0, atol=0)


def test_second_attentions_and_the_last_block_stay_where_they_belong():
    network, family = network_of("sd3.5")
    predict = predictions_of(family)
    config = fewer_blocks_config(network)
    assert (config["num_layers"], config["dual_attention_layers"]) == (4, [0, 1])
    student = matching_config(network, config, lambda: predict(network))
    assert student.kept["transformer_blocks.3"] == 6
    assert student.network.transformer_blocks[3].context_pre_only
    ends = teacher_ends(network, student.kept)
    assert ends["transformer_blocks.6"] == "transformer_blocks.3"
    assert list(ends.values()) == [f"transformer_blocks.{k}" for k in range(4)]
    hints = matched_blocks(pruning_for(network, family), student.network.config, ends)
    assert {hint.student_shape for hint in hints} == {(16, 16, 1)}


def with_shadows(network, family):
    """The network with twice the heads and the same output: no layer reads the added channels, which copy the others."""
    heads, inner = 2 * network.config["num_attention_heads"], 16
    wide = (
        type(network)
        .from_config(
            {**network.config, "num_attention_heads": heads, **({"caption_projection_dim": 32} if "sd3" in family else {})}
        )
        .eval()
    )
    weights = {}
    for name, weight in network.state_dict().items():
        shape = wide.state_dict()[name].shape
        if weight.shape[0] < shape[0]:  # the chunks of a modulation have a copy each
            chunk = inner if "norm" in name and ".linear." in name else len(weight)
            weight = torch.cat([part for chunk_ in weight.split(chunk) for part in (chunk_, chunk_)])
        if weight.ndim > 1 and name != "pos_embed.pos_embed" and weight.shape[1] < shape[1]:
            parts = weight.split([inner, weight.shape[1] - inner], 1) if ".proj_out." in name else [weight]
            weight = torch.cat([part for one in parts for part in (one, torch.zeros_like(one))], 1)
        if name == "pos_embed.pos_embed":
            weight = torch.cat([weight, weight], 2)
        weights[name] = weight
    wide.load_state_dict(weights)
    return wide


@pytest.mark.parametrize("name", ["sd3", "sd3.5", "flux"])
def test_heads_and_channels_that_no_layer_reads_are_removed_first(name):
    network, family = network_of(name)
    teacher, predict = with_shadows(network, name), predictions_of(family)
    expected = predict(network)
    torch.testing.assert_close(predict(teacher), expected, rtol=0, atol=1e-4)  # the oracle itself
    student = matching_config(teacher, network.config, lambda: predict(teacher))
    assert student.fresh == []
    torch.testing.assert_close(predict(student.network), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "factor", "heads"), [("sd3", 2, None), ("flux", 2, 8), ("sana", 2, None), ("sd3", 6, 8)])
def test_a_smaller_transformer_has_the_requested_multiply_accumulates(name, factor, heads):
    changes = {} if heads is None else {"num_attention_heads": heads, "caption_projection_dim": 8 * heads}
    if name == "flux":
        changes = {"num_attention_heads": heads, "num_layers": 1, "num_single_layers": 1}
    network, family = network_of(name, **changes)
    student = on_meta(type(network), compressed_config(pruning_for(network, family), CompressConfig(factor=factor)))
    assert macs_fraction(family, network, student) == pytest.approx(1 / factor, rel=0.1)
    assert (student.config["num_attention_heads"] < network.config["num_attention_heads"]) == (heads is not None)


def test_new_blocks_of_a_users_config_are_random_and_the_others_are_the_teachers():
    network, family = network_of("pixart")
    predict = predictions_of(family)
    student = matching_config(network, {"num_layers": 5}, lambda: predict(network))
    assert {name.rpartition(".transformer_blocks")[0] for name in student.fresh} == {""}
    assert student.fresh
    assert sum(number is None for number in student.kept.values()) == 1
    assert torch.isfinite(predict(student.network)).all()


def test_what_a_config_cannot_express_is_one_sentence():
    network, family = network_of("sana")
    pruning = pruning_for(network, family)
    with pytest.raises(
        ValueError, match=r"factor 50: the nearest is \d.*, with num_layers 1; the config of a SanaTransformer2DModel"
    ):
        compressed_config(pruning, CompressConfig(factor=50))
    with pytest.raises(ValueError, match=r"config: a SanaTransformer2DModel has no layers \(the nearest is num_layers\)"):
        matching_config(network, {"layers": 2}, lambda: None)
    with pytest.raises(ValueError, match=r"compress.blocks: a FluxTransformer2DModel of single blocks"):
        fewer_blocks_config(network_of("flux", num_layers=1, num_single_layers=1)[0])
    with pytest.raises(ValueError, match="got a teacher whose network is a UNet2DModel; expects a UNet2DConditionModel or a"):
        pruning_for(
            UNet2DModel(
                block_out_channels=(32, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
            ),
            family_called("DDPMPipeline"),
        )
