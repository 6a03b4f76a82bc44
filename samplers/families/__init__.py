"""The supported families of pipelines, one file each, and the family of a given pipeline."""

from __future__ import annotations

from typing import Any

import torch

from gendistill.samplers.families.aura_flow import AuraFlow
from gendistill.samplers.families.dit import DiT
from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.samplers.families.flux import Flux
from gendistill.samplers.families.flux_2 import Flux2, Flux2Klein
from gendistill.samplers.families.latent_unet import LatentUnconditional
from gendistill.samplers.families.lumina_2 import Lumina2
from gendistill.samplers.families.pixart import PixArt
from gendistill.samplers.families.pixel_unet import ClassConditional, Unconditional
from gendistill.samplers.families.sana import Sana
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.samplers.families.stable_diffusion_3 import StableDiffusion3
from gendistill.samplers.families.stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "FAMILIES",
    "Conditions",
    "Family",
    "SampleOptions",
    "device_of",
    "family_called",
    "family_of",
    "network_of",
    "pipeline_classes",
    "register",
    "require_supported",
]

FAMILIES: list[Family] = [
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux(),
    Flux2Klein(),
    Flux2(),
    Unconditional(),
    ClassConditional(),
    LatentUnconditional(),
    PixArt(),
    DiT(),
    Sana(),
    AuraFlow(),
    Lumina2(),
]


def register(family: Family) -> None:
    """Add a family of another package; it precedes the registered ones, so that it may replace one of them."""
    FAMILIES.insert(0, family)


def pipeline_classes() -> list[str]:
    """diffusers' names of all supported pipeline classes."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.pipelines))


def family_called(pipeline_class: str) -> Family:
    """The first family with a pipeline class of that name, as in a `model_index.json`.

    Raises:
        ValueError: no family has one.
    """
    require_supported("listed", pipeline_class)
    return next(family for family in FAMILIES if pipeline_class in family.pipelines)


def family_of(pipeline: Any) -> Family:
    """The family of an opened pipeline.

    Raises:
        ValueError: no family supports the pipeline.
    """
    family = next((known for known in FAMILIES if known.supports(pipeline)), None)
    if family is None:
        raise _not_supported("opened", type(pipeline).__name__)
    return family


def network_of(pipeline: Any) -> Any:
    """The denoiser of an opened pipeline, which is distilled: its U-Net or transformer."""
    return family_of(pipeline).network(pipeline)


def device_of(pipeline: Any) -> torch.device:
    """The device on which the networks of an opened pipeline compute."""
    return family_of(pipeline).device(pipeline)


def require_supported(source: object, pipeline_class: str) -> None:
    """Raise ValueError, with all supported classes, if no family has pipelines of that class."""
    if pipeline_class not in pipeline_classes():
        raise _not_supported(source, pipeline_class)


def _not_supported(source: object, pipeline_class: str) -> ValueError:
    return ValueError(f"model {source}: family {pipeline_class} is not supported; expects {', '.join(pipeline_classes())}")
