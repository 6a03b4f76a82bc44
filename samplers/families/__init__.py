"""The families of pipelines that the house knows, one file each, and which of them a pipeline belongs to."""

from __future__ import annotations

from typing import Any

import torch

from gendistill.samplers.families.family import Conditions, Family, SampleOptions
from gendistill.samplers.families.pixel_unet import ClassConditional, Unconditional
from gendistill.samplers.families.stable_diffusion import StableDiffusion
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

FAMILIES: list[Family] = [StableDiffusion(), StableDiffusionXL(), Unconditional(), ClassConditional()]


def register(family: Family) -> None:
    """Add a family from outside the house; it is asked before those that are there, so that it may replace one of them."""
    FAMILIES.insert(0, family)


def pipeline_classes() -> list[str]:
    """diffusers' names of all pipeline classes that belong to a family."""
    return list(dict.fromkeys(name for family in FAMILIES for name in family.pipelines))


def family_called(pipeline_class: str) -> Family:
    """The first family that has pipelines of diffusers' class of that name: all that a `model_index.json` tells of it.

    Raises:
        ValueError: no family has.
    """
    require_supported("listed", pipeline_class)
    return next(family for family in FAMILIES if pipeline_class in family.pipelines)


def family_of(pipeline: Any) -> Family:
    """The family that an opened pipeline belongs to.

    Raises:
        ValueError: it belongs to none.
    """
    found = next((family for family in FAMILIES if family.supports(pipeline)), None)
    if found is None:
        raise _not_supported("opened", type(pipeline).__name__)
    return found


def network_of(pipeline: Any) -> Any:
    """The component of an opened pipeline that is distilled: its U-Net or transformer."""
    return family_of(pipeline).network(pipeline)


def device_of(pipeline: Any) -> torch.device:
    """Where the networks of an opened pipeline compute."""
    return family_of(pipeline).device(pipeline)


def require_supported(source: object, pipeline_class: str) -> None:
    """Raise ValueError, with all that are supported, where pipelines of that class belong to no family."""
    if pipeline_class not in pipeline_classes():
        raise _not_supported(source, pipeline_class)


def _not_supported(source: object, pipeline_class: str) -> ValueError:
    return ValueError(f"model {source}: family {pipeline_class} is not supported; expects {', '.join(pipeline_classes())}")
