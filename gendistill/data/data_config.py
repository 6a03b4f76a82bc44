"""Settings of the training data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.image_size import size_of, written_size
from gendistill.settings.section import Section


class DataConfig(Section):
    """The data that the student learns from."""

    path: str | None = Field(
        None,
        description="Image folder, zip or list, WebDataset shards or dataset (parquet, saved folder, hf://), with captions",
        json_schema_extra=about(path=True),
    )
    prompts: str | None = Field(
        None,
        description="Text file with one prompt per line, from which the teacher generates the images; instead of path",
        json_schema_extra=about(path=True),
    )
    caption: str | dict[str, float] | None = Field(
        None,
        description="Caption field of the data, or the probability of each of several fields; null finds the usual fields, "
        "`folder` is the name of the subfolder, `none` trains without captions",
        examples=[{"name": 0.3, "subcategory": 0.7}],
    )
    missing_caption: Literal["empty", "skip", "error"] = Field(
        "empty",
        description="Treatment of images without a caption: train on the empty prompt, skip them, or stop with an error",
    )
    image_column: str | None = Field(None, description="Image column of a dataset; null finds it by its type or name")
    split: str | None = Field(None, description="Split of a dataset; null uses the only one, or train")
    resolution: int | str | None = Field(
        None,
        description="Size of the images that the student is trained on, and generates: the edge of squares, or WIDTHxHEIGHT; "
        "null uses the teacher's",
        json_schema_extra=about("pixels"),
        examples=["768x512"],
    )
    crop: Literal["center", "random", "buckets"] = Field(
        "center",
        description="Crop of the images: the centre square, a random square, or the nearest of several aspect ratios",
    )
    cache: str = Field(
        ".cache/gendistill",
        description="Folder of cached latents and encoded prompts, common to all runs",
        json_schema_extra=about(path=True),
    )
    num_synthetic: int = Field(
        2048,
        ge=1,
        description="Number of images that the teacher generates where prompts are the only data",
        json_schema_extra=about("images"),
    )
    synthetic_steps: int = Field(
        20,
        ge=1,
        description="Sampling steps of the teacher for each synthetic image, by DPM-Solver++",
        json_schema_extra=about("steps", papers.DPM_SOLVER),
    )
    synthetic_guidance: float = Field(
        3.0,
        ge=1,
        description="Guidance scale of the teacher for synthetic images; 1 is without guidance",
        json_schema_extra=about(paper=papers.CFG, at="equation 6"),
    )

    @field_validator("resolution", mode="before")
    @classmethod
    def _edges(cls, resolution: Any) -> Any:
        """One number for a square, however it is written."""
        if resolution is None:
            return None
        height, width = size_of(resolution)
        return height if height == width else written_size((height, width))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images by `resolution`."""
        return None if self.resolution is None else size_of(self.resolution)
