"""LoRAs in a pipeline: checked, and then merged into its networks or read as low-rank matrices.

diffusers loads the files; `layouts.lora_files` adds the formats that it does not read.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from diffusers.utils import logging as diffusers_logging
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.lora_files import lora_source, lora_weights
from gendistill.samplers.missing_weights import OPENING_ERRORS, first_sentence, listed, require_finite, require_pairs
from gendistill.samplers.weighted_lora import WeightedLora

Matrices = dict[str, tuple[Tensor, Tensor]]  # A and B by layer

logger = logging.getLogger(__name__)

ADAPTER = "merged"
OTHER_KINDS = {  # by parts of the names of their weights
    "DoRA": ("dora_scale", "lora_magnitude_vector"),
    "LoHa": ("hada_w",),
    "LoKr": ("lokr_w",),
    "OFT": ("oft_",),
    "LoCon with a Tucker decomposition": ("lora_mid",),
}
LOW_RANK = re.compile(r"(lora_[AB]|lora_down|lora_up|lora\.down|lora\.up)(\.default)?\.weight$|\.alpha$")


def merge_loras(pipeline: Any, loras: Sequence[WeightedLora]) -> None:
    """Merge LoRAs into the weights of a pipeline's networks, one after the other.

    Raises:
        ValueError: a file does not exist, has changed, is no LoRA, or is one of another model; in one sentence.
    """
    for lora in loras:
        lora.require()
        load_checked(pipeline, Path(lora.path), ADAPTER)
        with quiet_diffusers():
            pipeline.fuse_lora(lora_scale=lora.weight, components=pipeline._lora_loadable_modules)
            pipeline.unload_lora_weights()


def lora_matrices(pipeline: Any, file: Path) -> Matrices:
    """The matrices A and B of a LoRA by the layers of a pipeline's network, with its scale in B; the pipeline does not change.

    For a linear layer A is (r, in) and B (out, r); for a convolution A is (r, in, k, k) and B (out, r, 1, 1). Weights of text
    encoders are left out.

    Raises:
        ValueError: as `merge_loras`.
    """
    with_encoders = load_checked(pipeline, file, ADAPTER)
    if with_encoders:
        logger.warning("lora %s: its weights of text encoders are not used", file)
    layers = adapter_matrices(network_of(pipeline), ADAPTER)
    with quiet_diffusers():
        pipeline.unload_lora_weights()
    return layers


def encoder_matrices(pipeline: Any, loras: Sequence[WeightedLora]) -> dict[str, Matrices]:
    """The matrices of the sum of LoRAs by text encoder, with their scales and weights in B; the pipeline does not change.

    Raises:
        ValueError: as `merge_loras`.
    """
    encoders: dict[str, Matrices] = {}
    for lora in loras:
        load_checked(pipeline, Path(lora.path), ADAPTER)
        for name, encoder in family_of(pipeline).encoders(pipeline).items():
            for path, (down, up) in adapter_matrices(encoder, ADAPTER).items():
                layers, up = encoders.setdefault(name, {}), up * lora.weight
                if path in layers:
                    down, up = torch.cat([layers[path][0], down]), torch.cat([layers[path][1], up], 1)
                layers[path] = down, up
        with quiet_diffusers():
            pipeline.unload_lora_weights()
    return encoders


def adapter_matrices(network: nn.Module, adapter: str) -> Matrices:
    """The matrices A and B of an adapter by layer, with its scale in B; none for a network without it."""
    layers: Matrices = {}
    for path, module in network.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            layer: Any = module
            down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            layers[path] = down.clone(), up * layer.scaling[adapter]
    return layers


def load_checked(pipeline: Any, file: Path, adapter: str) -> bool:
    """Load all weights of a LoRA into a pipeline; returns whether it adapts text encoders, too.

    Raises:
        ValueError: as `merge_loras`.
    """
    family, kind = family_of(pipeline), type(pipeline).__name__
    if not family.lora:
        raise ValueError(f"lora {file}: diffusers loads no LoRA into a {kind}; expects a teacher of another family, or no LoRA")
    _require_low_rank(file)
    try:
        with quiet_diffusers():
            source, settings = lora_source(pipeline, file)
            state = lora_weights(pipeline, file)
    except OPENING_ERRORS as error:
        raise ValueError(f"lora {file} is not one of a {kind}: {first_sentence(error)}") from error
    require_pairs(f"lora {file}", state)
    require_finite(f"lora {file}", state)
    encoders = tuple(f"{name}." for name in family.prompt_encoders)
    if others := [name for name in state if not name.startswith((f"{family.network_part}.", *encoders))]:
        raise ValueError(f"lora {file} is not one of a {kind}, which has no place for {listed(others)}")
    modules, absent, other_widths = fitting_modules(state, network_of(pipeline), family.network_part)
    if other_widths:
        name, reason = next(iter(other_widths.items()))
        unfit = len(other_widths) + len(absent)
        raise ValueError(
            f"lora {file} is one of another model: {unfit} of its {len(modules)} layers do not fit, such as {name}, which "
            f"{reason}; expects a LoRA of this {kind}"
        )
    if absent:
        raise ValueError(
            f"lora {file} is one of another model: the {family.network_part} of this {kind} lacks {len(absent)} of its "
            f"{len(modules)} layers ({listed(absent)})"
        )
    try:
        with quiet_diffusers():
            pipeline.load_lora_weights(source, adapter_name=adapter, **settings)
    except OPENING_ERRORS as error:
        raise ValueError(f"lora {file} does not load into this {kind}: {first_sentence(error)}") from error
    return any(name.startswith(encoders) for name in state) if encoders else False


def _require_low_rank(file: Path) -> None:
    """Raise ValueError unless all weights in a file are matrices of a plain LoRA, and their alphas."""
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except OPENING_ERRORS as error:
        raise ValueError(f"lora {file} cannot be read: {first_sentence(error)}") from error
    for kind, parts in OTHER_KINDS.items():
        if found := [name for name in names if any(part in name for part in parts)]:
            raise ValueError(f"lora {file} is a {kind} ({listed(found)}), which is not read; expects a plain LoRA")
    if others := [name for name in names if not LOW_RANK.search(name)]:
        raise ValueError(f"lora {file} has weights that are no low-rank matrices ({listed(others)}); expects a plain LoRA")
    if not names:
        raise ValueError(f"lora {file} has no weights; expects a LoRA")


def fitting_modules(state: Mapping[str, Tensor], network: nn.Module, part: str) -> tuple[set[str], list[str], dict[str, str]]:
    """The modules with LoRA weights; those that the network does not have; and those of another width, with the reason.

    Args:
        state: the weights by diffusers' names.
        part: the name of the network in its pipeline.
    """
    prefix = f"{part}."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix) and "lora" in key}
    if own and not any("lora_A" in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    network_modules = dict(network.named_modules())
    modules, other_widths = set(), {}
    for key, value in sorted(own.items()):
        name, _, matrix = key.partition(".lora_")
        modules.add(name)
        weight = getattr(network_modules.get(name), "weight", None)
        if weight is not None and matrix.startswith("A") and value.shape[1] != weight.shape[1]:
            other_widths[name] = f"has {weight.shape[1]} inputs, and {value.shape[1]} in the LoRA"
        elif weight is not None and matrix.startswith("B") and value.shape[0] != weight.shape[0]:
            other_widths.setdefault(name, f"has {weight.shape[0]} outputs, and {value.shape[0]} in the LoRA")
    absent = sorted(name for name in modules if getattr(network_modules.get(name), "weight", None) is None)
    return modules, absent, other_widths


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence the logs of diffusers and PEFT about files that do not fit, which our error messages report."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(before)
