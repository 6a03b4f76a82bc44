"""What a student learns on: the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gendistill.settings.section import Section


class DataConfig(Section):
    """What the student learns on."""

    path: str | None = Field(
        None, description="image folder, WebDataset shards or a dataset (parquet, saved folder, hf://) with captions"
    )
    prompts: str | None = Field(None, description="text file, one prompt a line: the teacher makes the images")
    caption: str | dict[str, float] | None = Field(
        None,
        description="caption field of the data; or several with their shares, e.g. {name: 0.3, subcategory: 0.7}",
        examples=["shares by field such as {name: 0.3, subcategory: 0.7}"],
    )
    missing_caption: Literal["empty", "skip", "error"] = Field(
        "empty", description="images without a caption: train them on the empty prompt, leave them out, or stop"
    )
    image_column: str | None = Field(None, description="of a dataset; found by its type or name where not given")
    split: str | None = Field(None, description="of a dataset; the only one, or train, where not given")
    resolution: int | None = Field(None, ge=8, description="pixels; the teacher's own where not given")
    crop: Literal["center", "random", "buckets"] = Field(
        "center",
        description="the centre square; one random square an image, by the seed; or the nearest of several aspect ratios",
    )
    cache: str = Field(".cache/gendistill", description="folder for encoded latents and prompts, shared by runs")
    num_synthetic: int = Field(2048, ge=1, description="images to make with the teacher when only prompts are given")
    synthetic_steps: int = Field(20, ge=1, description="steps of the teacher for each of them (DPM-Solver++)")
    synthetic_guidance: float = Field(3.0, ge=1, description="guidance scale for them")
