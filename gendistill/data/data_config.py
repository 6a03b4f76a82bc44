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
    trigger: str | None = Field(
        None,
        min_length=1,
        description="Word that precedes each caption, and is the caption of images without one: the name of what is learned",
        json_schema_extra=about(paper=papers.DREAMBOOTH, at="section 4.1"),
    )
    prior_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the training samples that the teacher generates from its own prompts, next to the images of "
        "path, so that a student keeps what it could generate before; 0 is off",
        json_schema_extra=about(paper=papers.DREAMBOOTH, at="section 4.2"),
    )
    prior_prompts: str | None = Field(
        None,
        description="Text file with one prompt per line, or images with captions, for prior_fraction; null uses the teacher's "
        "classes, the captions of the emoji for the embedded models, or the captions of path without their trigger",
        json_schema_extra=about(path=True),
    )
    num_prior: int = Field(
        256,
        ge=1,
        description="Number of images that the teacher generates for prior_fraction, by the settings of synthetic images",
        json_schema_extra=about("images", papers.DREAMBOOTH, "section 4.2"),
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
