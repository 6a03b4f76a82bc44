"""Settings of compression: the size of the student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class CompressConfig(Section):
    """The size of the student (`--compress 4`), and how its network is made."""

    factor: float | None = Field(
        None,
        description="Factor by which the student has fewer multiply-accumulates and fewer parameters than its teacher",
        json_schema_extra=about(paper=papers.DEPGRAPH),
    )
    params: int | None = Field(
        None, ge=1, description="Number of parameters of the student; instead of factor", json_schema_extra=about("parameters")
    )
    macs: int | None = Field(
        None,
        ge=1,
        description="Multiply-accumulates of the student for one image; instead of factor, alone or together with params",
        json_schema_extra=about("multiply-accumulates"),
    )
    blocks: bool = Field(
        False,
        description="Remove layers of a U-Net's blocks first, until each block has one; or, without factor, half of the blocks "
        "of a transformer, whose factor is met by fewer blocks in any case, and by fewer heads only where these cannot meet it",
        json_schema_extra=about(paper=papers.BK_SDM, at="section 3.1"),
    )
    depth: float | Literal["auto"] = Field(
        "auto",
        description="Fraction of a GAN's residual blocks that are removed, those that change its images least, before channels "
        "are: 0.5 removes half, 0 none; auto removes most blocks of a network with 12 or more, and none of others",
        json_schema_extra=about(paper=papers.RESIDUAL_ENSEMBLES, at="section 4"),
    )
    depthwise: bool = Field(
        False,
        description="Replace convolutions by depthwise-separable ones where these cost less",
        json_schema_extra=about(paper=papers.MOBILENETS, at="section 3.1"),
    )
    keep: list[str] = Field(
        [], description="Paths of the teacher's modules whose channels are not pruned", examples=[["conv_in", "conv_out"]]
    )
    student: str | None = Field(
        None, description="Student class of your own as module:Class, instead of a pruned copy of the teacher"
    )
    student_config: str | None = Field(
        None,
        description="JSON file with the arguments of the student class, or with the changes to a diffusion teacher's config",
        json_schema_extra=about(path=True),
    )
    student_weights: str | None = Field(
        None,
        description="Weights file that the student class starts from: .safetensors, or a .pth with a state_dict",
        json_schema_extra=about(path=True),
    )

    @model_validator(mode="after")
    def _one_target(self) -> CompressConfig:
        if self.factor is not None and self.factor <= 1:
            raise ValueError(f"compress {self.factor:g}: expects a factor above 1, such as 4")
        if self.factor is not None and (self.params or self.macs):
            raise ValueError("compress.factor: cannot be combined with compress.params or compress.macs")
        if self.depth != "auto" and not 0 <= self.depth < 1:
            raise ValueError(f"compress.depth {self.depth:g}: expects a fraction of the blocks from 0 to below 1, or auto")
        if self.student is not None and (self.factor or self.params or self.macs):
            raise ValueError(
                f"compress.student {self.student}: cannot be combined with a compress factor; the class defines the size"
            )
        return self
