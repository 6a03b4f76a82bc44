"""The settings of the comparison of a student's images with its teacher's, during training."""

from __future__ import annotations

from pydantic import Field

from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class WatchConfig(Section):
    """Drift of a student from its teacher, measured in the validations of methods that train a second network."""

    prompts: int = Field(
        8,
        ge=0,
        description="Number of prompts whose images are compared with the teacher's in each validation; 0 compares none",
        json_schema_extra=about("prompts"),
    )
    seeds: int = Field(4, ge=2, description="Number of images of each of these prompts", json_schema_extra=about("images"))
    colour: float | None = Field(
        0.15,
        gt=0,
        description="Distance of the mean colours in OKLab, where black and white have the distance 1, beyond which training "
        "ends; null never ends it",
    )
    saturation: float | None = Field(
        2.0,
        gt=1,
        description="Ratio of the mean chromas in OKLab, the larger to the smaller, beyond which training ends; null never "
        "ends it",
    )
    diversity: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="Ratio of the mean distance between the features of images of one prompt to the teacher's, below which "
        "training ends; null never ends it",
    )
