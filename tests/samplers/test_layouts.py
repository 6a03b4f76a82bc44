"""The layouts of SD3's and Flux's checkpoints and LoRAs are those that diffusers reads."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from gendistill.samplers.layouts.flux_layout import FluxLayout
from gendistill.samplers.layouts.layout import NETWORK, from_original, lora_from_kohya, lora_to_kohya, to_original
from gendistill.samplers.layouts.sd3_layout import StableDiffusion3Layout

SD3 = {
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "caption_projection_dim": 8,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
}
# the widths that diffusers' conversion of Flux assumes
FLUX = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 2, "pooled_projection_dim": 2, "guidance_embeds": True}
NETWORKS = {
    "sd3": (StableDiffusion3Layout(), SD3Transformer2DModel, SD3, convert_sd3_transformer_checkpoint_to_diffusers),
    "sd3.5": (
        StableDiffusion3Layout(),
        SD3Transformer2DModel,
        {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)},
        convert_sd3_transformer_checkpoint_to_diffusers,
    ),
    "flux": (FluxLayout(), FluxTransformer2DModel, FLUX, convert_flux_transformer_checkpoint_to_diffusers),
}


def narrow(network, generator):
    """Weights with the outputs of a network and at most two inputs, which no layout changes."""
    return {
        name: torch.randn(weight.shape[:1] + tuple(min(size, 2) for size in weight.shape[1:]), generator=generator)
        for name, weight in network.state_dict().items()
    }


@pytest.mark.parametrize("family", NETWORKS)
def test_a_network_in_the_layout_of_its_release_is_what_diffusers_converts_back(family, generator):
    layout, kind, settings, convert = NETWORKS[family]
    with torch.device("meta"):
        network = kind(**settings)
    weights = narrow(network, generator)
    original = to_original(layout.rows(network.config, weights), weights)
    shapes = {name: weight.shape for name, weight in weights.items()}
    for converted in (
        from_original(layout.rows(network.config, weights), original, shapes),
        convert({NETWORK + name: weight for name, weight in original.items()}),
    ):
        assert converted.keys() == weights.keys()
        assert all(torch.equal(converted[name], weight) for name, weight in weights.items())


def lora_of(weights, targets, generator, rank=2):
    """Matrices and scale of a LoRA of the layers whose names end with one of the targets."""
    paths = [name.removesuffix(".weight") for name in weights if name.endswith(tuple(f"{of}.weight" for of in targets))]
    sizes = {path: weights[f"{path}.weight"].shape for path in paths}
    return {
        path: (torch.randn(rank, size[1], generator=generator), torch.randn(size[0], rank, generator=generator), 2.0)
        for path, size in sizes.items()
    }


@pytest.mark.parametrize("family", NETWORKS)
def test_a_lora_in_kohyas_format_is_the_same_lora_when_it_is_read(family, generator):
    layout, kind, settings, _ = NETWORKS[family]
    with torch.device("meta"):
        network = kind(**settings)
    weights = narrow(network, generator)
    shapes = {name: weight.shape for name, weight in weights.items()}
    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_v_proj", "net.2", "norm_out.linear", "proj_out")
    layers = lora_of(weights, targets, generator)
    kohya = lora_to_kohya(layout.lora_rows(network.config, weights), layers, shapes)
    assert all(name.startswith("lora_unet_") and "." not in name.split(".lora_")[0].split(".alpha")[0] for name in kohya)
    ours = lora_from_kohya(layout.lora_rows(network.config, weights), kohya, shapes)
    readings = [ours]
    if family == "flux":
        theirs = _convert_kohya_flux_lora_to_diffusers(dict(kohya))
        readings.append({name.removeprefix("transformer."): weight for name, weight in theirs.items()})
    for reading in readings:
        updates = {
            name.removesuffix(".lora_A.weight"): reading[name.replace("lora_A", "lora_B")] @ a
            for name, a in reading.items()
            if "lora_A" in name
        }
        assert updates.keys() >= layers.keys()
        for path, update in updates.items():
            if path in layers:
                a, b, scale = layers[path]
                if reading is not ours and path in ("norm_out.linear", "proj_out"):
                    scale = 1.0  # diffusers does not apply the alpha of these two layers
                assert torch.allclose(update, scale * b @ a, atol=1e-5)
            else:
                assert not update.any()  # a part of a fused layer that the LoRA does not change
