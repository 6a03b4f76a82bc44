import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_pipeline import tiny_pixel_unet, tiny_unet

from gendistill.diffusion.trained_networks import lora_config
from gendistill.networks.counting import macs
from gendistill.networks.pruning.unet_channels import channels, kept
from gendistill.networks.pruning.unet_importance import example_inputs, group_norms, read_norms
from gendistill.networks.pruning.unet_pruning import (
    fewer_blocks_config,
    matching_config,
    narrower_config,
    on_meta,
    smaller_config,
)

TINY_SD = Path(__file__).parents[2] / "assets" / "tiny-sd" / "unet"
EVERYWHERE = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD2 = {"use_linear_projection": True, "attention_head_dim": [1, 2]}
SDXL = {
    **SD2,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
    "transformer_layers_per_block": [1, 2],
}
THREE = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
}
WIDER_HEADS = 2**0.5  # attention divides by the root of a head's dimensions
SHAPES = {
    "sd1": EVERYWHERE,
    "sd1-three-levels": THREE,
    "sd2": SD2,
    "sdxl": SDXL,
    "guidance": {"time_cond_proj_dim": 12},
    "classes": {"num_class_embeds": 3, "class_embeddings_concat": True},
    "scale-shift": {"resnet_time_scale_shift": "scale_shift"},
    "cross-only": {"only_cross_attention": True},
}


def unet_of(kind, seed=0, **changes):
    """One whose norms, too, are different in every channel."""
    unet = tiny_unet(seed, **{**SHAPES[kind], **changes}).eval()
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return unet


def inputs_of(unet, batch=3):
    g, config = torch.Generator().manual_seed(7), unet.config
    inputs = {
        "sample": torch.randn(batch, 4, 8, 8, generator=g),
        "timestep": torch.tensor([990, 503, 20])[:batch],
        "encoder_hidden_states": torch.randn(batch, 10, config["cross_attention_dim"], generator=g),
    }
    if config["time_cond_proj_dim"]:
        inputs["timestep_cond"] = torch.randn(batch, config["time_cond_proj_dim"], generator=g)
    if config["num_class_embeds"]:
        inputs["class_labels"] = torch.arange(batch) % config["num_class_embeds"]
    if config["addition_embed_type"]:
        added = {"text_embeds": torch.randn(batch, 16, generator=g), "time_ids": torch.full((batch, 6), 8.0)}
        inputs["added_cond_kwargs"] = added
    return inputs


@torch.no_grad()
def output(unet, inputs):
    return unet(**inputs).sample


@pytest.fixture(scope="module")
def tiny_sd():
    return UNet2DConditionModel.from_pretrained(TINY_SD).eval()


def narrower(unet, share, *more, **named):
    student, fresh = matching_config(unet, narrower_config(unet.config, share), *more, **named)
    assert fresh == []
    return student


def fewer_blocks(unet, mid=True):
    student, fresh = matching_config(unet, fewer_blocks_config(unet.config, mid))
    assert fresh == []
    return student


def smaller(unet, *asked, **more):
    student, fresh = matching_config(unet, smaller_config(unet.config, *asked, **more))
    assert fresh == []
    return student


def opens_in_plain_diffusers(student):
    config = {name: value for name, value in student.config.items() if name != "_name_or_path"}
    UNet2DConditionModel.from_config(config).load_state_dict(student.state_dict(), strict=True)


@pytest.mark.parametrize("kind", SHAPES)
def test_all_channels_kept_is_the_same_network(kind):
    unet = unet_of(kind)
    inputs = inputs_of(unet)
    torch.testing.assert_close(output(narrower(unet, 1.0), inputs), output(unet, inputs), rtol=0, atol=1e-6)


def shadowed(unet):
    """Twice as wide, and it says the same: every channel has a shadow that is computed as it is and that nothing reads.

    The shadows share the statistics of their channels, so that norms of groups and of layers stay what they are.
    """
    config = unet.config
    wide = UNet2DConditionModel.from_config(config, block_out_channels=[2 * n for n in config["block_out_channels"]]).eval()
    weights = {}
    for name, weight in unet.state_dict().items():
        shape = wide.state_dict()[name].shape
        if weight.shape[0] < shape[0]:
            weight = weight.repeat_interleave(2, 0)
            if name.endswith("attn1.to_k.weight") or name.endswith("attn2.to_k.weight"):
                weight[1::2] = 0  # what queries' shadows are multiplied by
            if name.endswith("to_q.weight"):
                weight = weight * WIDER_HEADS
        if weight.ndim > 1 and weight.shape[1] < shape[1]:
            embedding = name == "class_embedding.weight"
            read = weight.repeat_interleave(2, 1)
            read[:, 1::2] *= 1 if embedding else 0
            weight = read
        weights[name] = weight
    wide.load_state_dict(weights)
    return wide


def not_shadows(unet, found):
    runs = {run.label: run.size for axes in found.axes.values() for runs in axes for run in runs}
    return {label: 1 - torch.arange(size) % 2 for label, size in runs.items()}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_network_loses_the_channels_that_nothing_reads(kind):
    small = unet_of(kind)
    teacher, inputs = shadowed(small), inputs_of(small)
    expected = output(small, inputs)
    torch.testing.assert_close(output(teacher, inputs), expected, rtol=0, atol=1e-4)  # the oracle itself
    student = narrower(teacher, 0.5, importance=not_shadows)
    assert student.config["block_out_channels"] == list(small.config["block_out_channels"])
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if name.endswith("to_q.weight"):
                weight.div_(WIDER_HEADS)  # narrower rescales nothing
    torch.testing.assert_close(student.state_dict(), small.state_dict())


@torch.no_grad()
def silence(unet, found, dead):
    """No layer makes or reads the channels of `dead`, label to indices."""
    for name, weight in unet.named_parameters():
        for dim, runs in enumerate(found.axes.get(name, ())):
            start = 0
            for run in runs:
                weight.index_fill_(dim, start + dead.get(run.label, torch.tensor([], dtype=torch.long)), 0.0)
                start += run.size


@pytest.mark.parametrize("importance", [group_norms, read_norms])
@pytest.mark.parametrize("kind", SHAPES)
def test_dead_channels_are_the_first_to_go(kind, importance):
    unet = unet_of(kind, block_out_channels=[32] * len(unet_of(kind).config["block_out_channels"]))
    found = channels(unet)
    runs = {run.label: run for axes in found.axes.values() for side in axes for run in side if run.label != "timesteps"}
    dead = {label: torch.arange(run.size)[torch.arange(run.size) % 4 < 2] for label, run in runs.items()}
    silence(unet, found, dead)
    scores = importance(unet, found)
    for label, run in runs.items():
        stay = kept(run, replace(run, size=run.size // 2), scores, found.cuts)
        assert not set(stay.tolist()) & set(dead[label].tolist()), label


def with_identities(unet):
    """The blocks that `fewer_blocks` takes from this one pass on what they get."""
    with torch.no_grad():
        gone = [("down_blocks", j) for j in range(1, unet.config["layers_per_block"])]
        gone += [("up_blocks", j) for j in range(1, unet.config["layers_per_block"])]
        for side, j in gone:
            for block in getattr(unet, side):
                quiet = [block.resnets[j].conv2]
                quiet += [block.attentions[j].proj_out] if hasattr(block, "attentions") else []
                for layer in quiet:
                    layer.weight.zero_(), layer.bias.zero_()
                if side == "up_blocks":  # of what comes in beside the skip, all; of the skip, nothing
                    shortcut = block.resnets[j].conv_shortcut
                    shortcut.weight.zero_(), shortcut.bias.zero_()
                    shortcut.weight[:, : shortcut.out_channels, 0, 0] = torch.eye(shortcut.out_channels)
    return unet


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("mid", [True, False])
def test_without_blocks_that_do_nothing_the_output_is_the_same(mid, layers):
    unet = with_identities(unet_of("sd1-three-levels", layers_per_block=layers))
    if not mid:
        with torch.no_grad():
            for layer in (*(resnet.conv2 for resnet in unet.mid_block.resnets), unet.mid_block.attentions[0].proj_out):
                layer.weight.zero_(), layer.bias.zero_()
    student = fewer_blocks(unet, mid)
    assert (student.mid_block is not None) == mid
    assert [len(block.resnets) for block in (*student.down_blocks, *student.up_blocks)] == [1, 1, 1, 2, 2, 2]
    inputs = inputs_of(unet)
    torch.testing.assert_close(output(student, inputs), output(unet, inputs), rtol=0, atol=1e-5)


def test_transformers_of_several_depths_keep_those_of_their_blocks():
    depths = {"transformer_layers_per_block": [[1, 2], [2, 1]], "reverse_transformer_layers_per_block": [[3, 1, 2], [1, 2, 3]]}
    unet = unet_of("sd1", layers_per_block=2, **depths)
    student = fewer_blocks(unet)
    assert [len(a.transformer_blocks) for block in student.down_blocks for a in block.attentions] == [1, 2]
    assert [len(a.transformer_blocks) for block in student.up_blocks for a in block.attentions] == [3, 2, 1, 3]
    last = "attentions.{}.transformer_blocks.2.ff.net.2.weight"
    ours, theirs = student.up_blocks[1].state_dict(), unet.up_blocks[1].state_dict()
    assert torch.equal(ours[last.format(1)], theirs[last.format(2)])


def test_of_one_layer_a_block_only_the_middle_can_go(tiny_sd):
    with pytest.raises(ValueError, match=r"layers_per_block 1: there is no block to remove but the mid block \(mid=False\)"):
        fewer_blocks(tiny_sd)
    student = fewer_blocks(tiny_sd, mid=False)
    assert student.mid_block is None
    with pytest.raises(ValueError, match=r"layers_per_block 1: there is no block to remove\."):
        fewer_blocks(student, mid=False)


def cost(unet):
    return macs(on_meta(unet.config), example_inputs(unet.config))


def test_a_smaller_network_spends_what_was_asked(tiny_sd):
    student = smaller(tiny_sd, 2)
    assert cost(tiny_sd) / cost(student) == pytest.approx(2, rel=0.1)
    opens_in_plain_diffusers(student)


@pytest.mark.parametrize(("kind", "blocks"), [("sdxl", False), ("sd2", True)])
def test_every_family_is_halved(kind, blocks):
    unet = unet_of(kind, block_out_channels=[32, 64], layers_per_block=2)
    student = smaller(unet, 2, blocks=blocks)
    assert cost(unet) / cost(student) == pytest.approx(2, rel=0.1)
    assert (student.config["layers_per_block"] == 1) == blocks
    assert torch.isfinite(output(student, inputs_of(unet))).all()
    opens_in_plain_diffusers(student)


def test_the_config_of_stable_diffusion_1_5_is_halved_without_its_weights():
    teacher = on_meta({"sample_size": 64, "cross_attention_dim": 768})
    assert list(teacher.config["block_out_channels"]) == [320, 640, 1280, 1280]
    student = on_meta(smaller_config(teacher.config, 2))
    assert cost(teacher) / cost(student) == pytest.approx(2, rel=0.1)
    assert all(width % 32 == 0 for width in student.config["block_out_channels"])


def test_an_example_of_the_users_own_is_what_is_counted(tiny_sd):
    """Attention grows with the square of the pixels, so that large images cost otherwise."""
    large = (torch.zeros(2, 4, 32, 32), torch.tensor([5, 5]), torch.zeros(2, 24, 96))
    student = smaller(tiny_sd, 2, large)
    assert macs(tiny_sd, large) / macs(student, large) == pytest.approx(2, rel=0.1)


def test_what_cannot_be_reached_is_said_with_what_can(tiny_sd):
    with pytest.raises(ValueError, match=r"factor 1000: the nearest is \d+\.?\d*, with block_out_channels \[16, 16\]"):
        smaller(tiny_sd, 1000)
    for factor in (1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"factor {factor:g}: expects more than 1"):
            smaller(tiny_sd, factor)
    with pytest.raises(ValueError, match=r"share 1.5: expects more than 0 and at most 1"):
        narrower(tiny_sd, 1.5)


def test_the_channels_that_matter_say_more_than_others(tiny_sd):
    inputs = inputs_of(tiny_sd)
    expected = output(tiny_sd, inputs).flatten()

    def chance(seed):
        generator = torch.Generator().manual_seed(seed)

        def importance(unet, found):
            sizes = {run.label: run.size for axes in found.axes.values() for runs in axes for run in runs}
            return {label: torch.rand(size, generator=generator) for label, size in sizes.items()}

        return importance

    def agreement(student):
        return float(torch.corrcoef(torch.stack([expected, output(student.eval(), inputs).flatten()]))[0, 1])

    chosen = narrower(tiny_sd, 0.5)
    torch.manual_seed(0)
    fresh = UNet2DConditionModel.from_config(chosen.config)
    by_chance = [agreement(narrower(tiny_sd, 0.5, chance(seed))) for seed in range(8)]
    print(
        f"chosen {agreement(chosen):.3f}, by chance {min(by_chance):.3f} to {max(by_chance):.3f}, fresh {agreement(fresh):.3f}"
    )
    assert agreement(chosen) > max(by_chance)
    assert min(by_chance) > agreement(fresh)


def test_a_config_of_the_users_own_takes_what_fits(tiny_sd):
    student, fresh = matching_config(tiny_sd, {"block_out_channels": [48, 128], "mid_block_type": None})
    assert fresh == []
    assert torch.equal(student.up_blocks[0].resnets[0].conv2.weight, tiny_sd.up_blocks[0].resnets[0].conv2.weight)
    student, fresh = matching_config(tiny_sd, {"layers_per_block": 2, "cross_attention_dim": 64})
    assert {name.split(".")[0] for name in fresh} == {"down_blocks", "up_blocks", "mid_block"}
    prompts = {name for name in fresh if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert {re.sub(r"_blocks.\d", "", name).split(".")[2] for name in set(fresh) - prompts} == {"1"}  # the layers added
    assert torch.equal(student.up_blocks[0].resnets[2].conv1.weight, tiny_sd.up_blocks[0].resnets[1].conv1.weight)
    opens_in_plain_diffusers(student)


def test_a_config_without_the_innermost_level_keeps_the_outer_ones():
    unet = unet_of("sd1-three-levels")
    two = {name: SHAPES["sd1-three-levels"][name][:2] for name in ("block_out_channels", "down_block_types")}
    student, fresh = matching_config(unet, {**two, "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]})
    assert torch.equal(student.up_blocks[1].resnets[2].conv1.weight, unet.up_blocks[2].resnets[2].conv1.weight)
    assert fresh == []


def test_a_shortcut_that_the_teacher_does_without_starts_as_one():
    """Two levels of the same width, of which one gets narrower."""
    unet = unet_of("sd1", block_out_channels=[32, 32])
    student, fresh = matching_config(unet, {"block_out_channels": [32, 16]})
    shortcut = student.down_blocks[1].resnets[0].conv_shortcut
    assert fresh == []
    assert torch.equal(shortcut.weight.sum((1, 2, 3)), torch.ones(16))
    assert not shortcut.bias.any()


def test_fewer_heads_are_whole_heads():
    unet = unet_of("sd1", block_out_channels=[32, 32], attention_head_dim=4)
    student, fresh = matching_config(unet, {"block_out_channels": [32, 16], "attention_head_dim": [4, 2]})
    ours = student.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v.weight
    theirs = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v.weight
    heads = [any(torch.equal(head, other) for other in theirs.view(4, 8, 32)) for head in ours.view(2, 8, 32)]
    assert fresh == []
    assert heads == [True, True]


def test_configs_that_cannot_be_are_refused(tiny_sd):
    with pytest.raises(
        ValueError, match=r"config: a UNet2DConditionModel has no block_channels \(the nearest is block_out_channels\)"
    ):
        matching_config(tiny_sd, {"block_channels": [1]})
    with pytest.raises(ValueError, match=r"config: diffusers cannot make a UNet2DConditionModel of it: .*divisible"):
        matching_config(tiny_sd, {"block_out_channels": [30, 64]})


def test_adapters_and_other_networks_are_refused_in_a_sentence():
    unet = tiny_unet()
    unet.add_adapter(lora_config(["to_q"], 2), "style")
    with pytest.raises(ValueError, match=r"unet: has adapters \(style\); expects a network without"):
        matching_config(unet, {})
    with pytest.raises(ValueError, match=r"unet: expects a UNet2DConditionModel; got UNet2DModel"):
        matching_config(tiny_pixel_unet(), {})
    with pytest.raises(ValueError, match=r"unet: has no weights"):
        matching_config(on_meta(tiny_unet().config), {})
    strange = ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]
    with pytest.raises(ValueError, match=r"channels of a SimpleCrossAttnDownBlock2D are not known"):
        narrower(tiny_unet(down_block_types=strange), 0.5)


def test_weights_of_which_it_is_not_known_how_they_get_narrower_start_fresh():
    unet = tiny_unet(attention_type="gated")
    _, fresh = matching_config(unet, narrower_config(unet.config, 0.5))
    assert fresh
    assert all("fuser" in name or "position_net" in name for name in fresh)


def test_a_student_is_of_its_teachers_precision_and_leaves_it_alone():
    teacher = UNet2DConditionModel.from_pretrained(TINY_SD, torch_dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    for student in (narrower(teacher, 0.5), narrower(teacher, 1.0)):
        assert {weight.dtype for weight in student.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(1)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
