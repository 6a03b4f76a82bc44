"""The layout of Stable Diffusion 1.x, 2.x and XL: a U-Net, a VAE and CLIP's and OpenCLIP's text encoders.

diffusers' `from_single_file` opens it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor, nn

from gendistill.samplers.layouts.autoencoder_layout import require_autoencoder, vae_weights
from gendistill.samplers.layouts.layout import NETWORK, OriginalLayout, Row, to_original
from gendistill.schedulers import is_edm

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TO_LDM: dict[str, Any] = DIFFUSERS_TO_LDM_MAPPING
UNET_ENDS = {**TO_LDM["unet"]["layers"], **TO_LDM["unet"]["addition_embed_type"]}
OPEN_CLIP = TO_LDM["openclip"]
# ComfyUI reads v in a checkpoint of Stable Diffusion 2.x where the standard deviation of this bias is above this limit
BIAS_OF_V, STD_OF_V = f"{NETWORK}output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
FIRST = f"{NETWORK}input_blocks.0.0.weight"


class StableDiffusionLayout(OriginalLayout):
    """Stable Diffusion 1.x and 2.x. Kohya's names for their LoRAs are diffusers' names, `lora_unet_down_blocks_0_...`."""

    prefixes: Mapping[str, tuple[str, ...]] = {
        "unet": (NETWORK,),
        "vae": ("first_stage_model.",),
        "text_encoder": ("cond_stage_model.",),
    }

    def architecture(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        if FIRST not in shapes:
            return None
        if any(name.startswith("conditioner.") for name in shapes):
            return None
        if not any(name.startswith("cond_stage_model.model.") for name in shapes):
            return "sd1"
        raise ValueError(
            "a Stable Diffusion 2 file does not name its prediction type; expects teacher_config: sd2-base (epsilon, 512 "
            "pixels), sd2-v (v, 768 pixels), or a folder with its configs"
        )

    def unfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        channels = shapes.get(FIRST, (0, 4))[1]
        return None if channels == 4 else f"{channels} input channels, for inpainting or editing"

    def release(self, pipeline: Any) -> str:
        require_unet(pipeline)
        return "stable-diffusion-v1" if pipeline.text_encoder.config.hidden_act == "quick_gelu" else "stable-diffusion-v2"

    def rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        return (Row(unet_name(name, config), (name,)) for name in names)

    def lora_rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        return (Row(name[:-6] + "{}", (name[:-6] + "{}",)) for name in names if name.endswith(".weight"))

    def weights(self, pipeline: Any) -> dict[str, Tensor]:
        weights = network_and_vae(self, pipeline)
        if self.release(pipeline) == "stable-diffusion-v2":
            return weights | open_clip_weights(pipeline.text_encoder, "cond_stage_model.model.")
        return weights | clip_weights(pipeline.text_encoder, "cond_stage_model.")

    def marks(self, scheduler: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Programs read all checkpoints of 1.x as epsilon, and those of 2.x by the size of a bias."""
        if scheduler.config.prediction_type == "epsilon":
            return {}
        bias, second = weights.get(BIAS_OF_V), any(name.startswith("cond_stage_model.model.") for name in weights)
        large = bias is None or bias.float().std(correction=0) > STD_OF_V
        return marks_of_v(scheduler) if second and large else None

    def scheduler(self, scheduler: Any, names: Iterable[str]) -> Any:
        """The scheduler of a fine-tune that marks v-prediction and zero terminal SNR by empty tensors, `v_pred` and `ztsnr`."""
        marked = {"v_pred", "ztsnr"} & set(names)
        if not marked:
            return scheduler
        changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in marked else {}
        if "ztsnr" in marked:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return diffusers.DDIMScheduler.from_config(scheduler.config, **changes, clip_sample=False, set_alpha_to_one=False)


class StableDiffusionXLLayout(StableDiffusionLayout):
    """Stable Diffusion XL. Kohya's names for its LoRAs are those of the release, `lora_unet_input_blocks_4_1_...`."""

    prefixes: Mapping[str, tuple[str, ...]] = {
        "unet": (NETWORK,),
        "vae": ("first_stage_model.",),
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    }

    def architecture(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        if FIRST not in shapes or not any(name.startswith("conditioner.") for name in shapes):
            return None
        return "sdxl"

    def release(self, pipeline: Any) -> str:
        require_unet(pipeline)
        if pipeline.vae.config.get("latents_mean") is not None:
            raise ValueError("the original layout has no latents_mean and latents_std of a VAE; expects --format diffusers")
        return "stable-diffusion-xl-v1-base"

    def lora_rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        for name in (name for name in names if name.endswith(".weight")):
            yield Row(unet_name(name, config).removesuffix("weight") + "{}", (name.removesuffix("weight") + "{}",))

    def weights(self, pipeline: Any) -> dict[str, Tensor]:
        first = clip_weights(pipeline.text_encoder, "conditioner.embedders.0.")
        second = open_clip_weights(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
        return {**network_and_vae(self, pipeline), **first, **second}

    def marks(self, scheduler: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Programs read the mark of v, and epsilon without it."""
        return {} if scheduler.config.prediction_type == "epsilon" else marks_of_v(scheduler)


def marks_of_v(scheduler: Any) -> dict[str, Tensor] | None:
    """The empty tensors by which a checkpoint names v-prediction and zero terminal SNR; None for other prediction types."""
    if scheduler.config.prediction_type != "v_prediction":
        return None
    names = ("v_pred", "ztsnr") if scheduler.config.get("rescale_betas_zero_snr") else ("v_pred",)
    return {name: torch.zeros(0) for name in names}


def require_unet(pipeline: Any) -> None:
    """Raise ValueError if the U-Net, the VAE or the noise schedule of a pipeline has no place in the layout."""
    if is_edm(pipeline.scheduler):
        raise ValueError("the original layout does not name a noise schedule of EDM; expects --format diffusers")
    unet = pipeline.components["unet"].config
    if unet.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the original layout has no guidance embedding (guidance.mode embedded); expects a student with baked guidance"
        )
    if unet["mid_block_type"] is None or not isinstance(unet["layers_per_block"], int):
        raise ValueError("the original layout expects a mid block, and the same number of layers in every block")
    require_autoencoder(getattr(pipeline, "vae", None))


def network_and_vae(layout: OriginalLayout, pipeline: Any) -> dict[str, Tensor]:
    """The weights of the U-Net and of the VAE by the names of the release; raises ValueError as `OriginalLayout.release`."""
    layout.release(pipeline)
    unet = pipeline.components["unet"]
    state = unet.state_dict()
    converted = to_original(layout.rows(unet.config, state), state)
    return {NETWORK + name: tensor for name, tensor in converted.items()} | vae_weights(pipeline.vae, "first_stage_model.")


def clip_weights(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of CLIP's text encoder, with and without transformers 4's prefix."""
    state = encoder.state_dict()
    return {f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a weight (`....weight`, `....bias`) of a `UNet2DConditionModel`."""
    if name in UNET_ENDS:
        return UNET_ENDS[name]
    side, rest = name.split(".", 1)
    layers = config["layers_per_block"]
    if side == "mid_block":
        kind, index, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{_inner(kind, rest)}"
    level, kind, index, rest = rest.split(".", 3)
    block, number = int(level), int(index)
    if side == "down_blocks":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        has_attention = config["up_block_types"][block] == "CrossAttnUpBlock2D"
        return f"output_blocks.{first + layers}.{1 + has_attention}.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, rest = rest.split(".", 1)
    return f"{RESNET[part]}.{rest}"


def open_clip_weights(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The weights of a CLIP text encoder with OpenCLIP's names, and with query, key and value in one tensor."""
    weights: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in encoder.state_dict().items():
        if name == "text_projection.weight":
            weights[prefix + "text_projection"] = tensor.T
            continue
        name = f"text_model.{name.removeprefix('text_model.')}"
        if name in OPEN_CLIP["layers"]:
            weights[prefix + OPEN_CLIP["layers"][name]] = tensor
            continue
        for transformers_name, original_name in OPEN_CLIP["transformer"].items():
            name = name.replace(transformers_name, original_name)
        name = f"transformer.{name}"
        if match := re.match(r"(.*)\.([qkv])_proj\.(weight|bias)$", name):
            projections.setdefault(f"{prefix}{match[1]}.in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            weights[prefix + name] = tensor
    return weights | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in projections.items()}
