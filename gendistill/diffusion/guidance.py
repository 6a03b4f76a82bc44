"""The distillation of classifier-free guidance (Ho & Salimans 2022) into a student, common to all methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class GuidanceConfig(Section):
    """The use of classifier-free guidance by the student."""

    mode: Literal["embedded", "baked", "cfg"] = Field(
        "baked",
        description="Form of guidance in the student: baked in at one scale, embedded as an input that stays adjustable, or "
        "cfg, which keeps both branches and negative prompts at two calls per step",
        json_schema_extra=about(paper=papers.GUIDED, at="section 3.1"),
    )
    scale: float = Field(
        3.0,
        ge=1,
        description="Guidance scale that is baked in, or the default scale of sampling in other modes; 1 is without guidance",
        json_schema_extra=about(paper=papers.CFG, at="equation 6"),
    )
    range: tuple[float, float] = Field(
        (1.0, 6.0),
        description="Lowest and highest guidance scale that a student with embedded guidance learns",
        json_schema_extra=about(paper=papers.GUIDED, at="section 3.1"),
    )
    prompt_dropout: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Probability that a training prompt is replaced by the empty prompt, in mode cfg",
        json_schema_extra=about(paper=papers.CFG, at="algorithm 1"),
    )

    @model_validator(mode="after")
    def _range_rises(self) -> GuidanceConfig:
        low, high = self.range
        if not 1 <= low < high:
            raise ValueError(f"guidance.range {low}, {high}: expects 1 <= low < high")
        return self

    def pipeline_scale(self, neutral: float) -> float:
        """The `guidance_scale` of calls of the student's pipeline; `neutral`, the family's, where the scale is baked in."""
        return neutral if self.mode == "baked" else self.scale

    def changes(self, teacher: Denoiser) -> bool:
        """Whether the student's function of its inputs is another than the teacher's, which guidance alone would make it."""
        if teacher.guidance_input is not None:
            return self.mode == "baked" and self.scale != teacher.guidance_input
        return self.mode == "embedded" or (self.mode == "baked" and self.scale > 1)


@dataclass(frozen=True)
class Guidance:
    """Conditions of the student and guidance of the teacher in a training step.

    - `baked`: the teacher is guided at one fixed scale, which is no input of the student.
    - `embedded`: the teacher is guided at a scale that is sampled for each sample, and the student has that scale as an input
      (Meng et al. 2023, section 3.1).
    - `cfg`: the teacher is not guided; some prompts are dropped, so that the student learns both branches.

    A teacher with the guidance scale as an input gets it in the same call (`Denoiser.guided`), and the student keeps the input:
    it has the sampled scale in `embedded`, and in `baked` the default of its pipeline, so that a call needs no scale.

    Attributes:
        unconditional: the encoded empty prompt, a batch of 1.
    """

    unconditional: Conditioning
    config: GuidanceConfig

    def sample(self, conditioning: Conditioning, random: PerSampleRandom) -> tuple[Conditioning, Tensor | float]:
        """The conditions of the student (B), and the guidance scale of the teacher, (B,) or one number."""
        config, device = self.config, conditioning.device
        if config.mode == "embedded":
            low, high = config.range
            scale = to_device(low + (high - low) * random.uniform(), device)
            return conditioning.with_guidance(scale), scale
        if config.mode == "cfg":
            kept = to_device(random.uniform() >= config.prompt_dropout, device)
            return conditioning.where(kept, self.unconditional), 1.0
        return conditioning, config.scale

    def predict(
        self, teacher: Denoiser, x_t: Tensor, t: Tensor, conditioning: Conditioning, scale: Tensor | float
    ) -> Prediction:
        """The teacher's prediction at x_t (B, ...), t (B,), guided at `scale`; the number 1 skips the unconditional branch."""
        return teacher.guided(x_t, t, conditioning.with_guidance(None), self.unconditional, scale)
