"""The settings that describe a GAN teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class GeneratorConfig(Section):
    """The GAN teacher, where its folder does not describe it."""

    weights: str | None = Field(
        None,
        description="Weights file of a teacher given as module:Class: .safetensors, or a .pth with a state_dict",
        json_schema_extra=about(path=True),
    )
    kind: Literal["noise", "image"] | None = Field(None, description="Input of the generator; null detects it")
    input_shape: list[int] | None = Field(
        None,
        description="Shape of one input of the generator, such as [128] for noise or [3, 64, 64] for an image; null detects it",
        examples=[[3, 64, 64]],
    )
    num_classes: int | None = Field(
        None,
        ge=0,
        description="Number of classes of a conditional generator, 0 for none; null detects it",
        json_schema_extra=about("classes"),
    )
    output_range: tuple[float, float] | None = Field(
        None, description="Lowest and highest pixel value of the generator's images; null is [-1, 1]", examples=[[-1, 1]]
    )
    discriminator: str | None = Field(
        None,
        description="Discriminator of the teacher: module:Class, a folder, or fresh for a new one; null uses that of the "
        "teacher's folder",
        json_schema_extra=about(path=True),
    )
    discriminator_weights: str | None = Field(
        None,
        description="Weights file of a discriminator given as module:Class: .safetensors, or a .pth with a state_dict",
        json_schema_extra=about(path=True),
    )
    discriminator_config: str | None = Field(
        None,
        description="JSON file with the arguments of a discriminator given as module:Class",
        json_schema_extra=about(path=True),
    )
