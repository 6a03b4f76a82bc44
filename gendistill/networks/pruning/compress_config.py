"""How small a student is to be: the settings."""

from __future__ import annotations

from pydantic import Field, model_validator

from gendistill.settings.section import Section


class CompressConfig(Section):
    """How small the student is (`--compress 4`), and what it is made of."""

    factor: float | None = Field(None, description="both multiply-accumulates and parameters are divided by it")
    params: int | None = Field(None, ge=1, description="parameters of the student, instead")
    macs: int | None = Field(None, ge=1, description="multiply-accumulates of an image of the student, instead or besides")
    blocks: bool = Field(False, description="of a diffusion model: one layer a block first, as BK-SDM")
    depthwise: bool = Field(False, description="depthwise-separable convolutions where they cost less")
    keep: list[str] = Field([], description="modules of the teacher whose channels are all kept, by path")
    student: str | None = Field(None, description="a class of your own instead, as module:Class")
    student_config: str | None = Field(
        None, description="JSON file with its arguments; of a diffusion model, what differs from the teacher's config"
    )
    student_weights: str | None = Field(None, description=".safetensors or a state_dict's .pth that it starts from")

    @model_validator(mode="after")
    def _one_target(self) -> CompressConfig:
        if self.factor is not None and self.factor <= 1:
            raise ValueError(f"compress {self.factor:g}: expects a factor above 1, such as 4")
        if self.factor is not None and (self.params or self.macs):
            raise ValueError("compress.factor: expects no compress.params or compress.macs beside it")
        if self.student is not None and (self.factor or self.params or self.macs):
            raise ValueError(
                f"compress.student {self.student}: expects no compress factor beside it; the class says how small it is"
            )
        return self
