"""What a GAN teacher is: the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gendistill.settings.section import Section


class GeneratorConfig(Section):
    """What a GAN teacher is, where its folder does not say so."""

    weights: str | None = Field(None, description="of a teacher module:Class: a .safetensors or a state_dict's .pth")
    kind: Literal["noise", "image"] | None = Field(None, description="what goes in; found where not given")
    input_shape: list[int] | None = Field(None, description="of one sample: [128] numbers of noise, [3, 64, 64] of an image")
    num_classes: int | None = Field(None, ge=0, description="found where not given; 0 is none")
    output_range: tuple[float, float] | None = Field(None, description="of its images; [-1, 1] where not given")
    discriminator: str | None = Field(
        None,
        description="the teacher's own: module:Class or a folder; `fresh` does not use it; that of the folder where not given",
    )
    discriminator_weights: str | None = Field(None, description="of a discriminator module:Class")
    discriminator_config: str | None = Field(None, description="JSON file with its arguments")
