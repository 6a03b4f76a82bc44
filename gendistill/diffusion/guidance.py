"""How classifier-free guidance (Ho & Salimans 2022) enters a student, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class GuidanceConfig(Section):
    """Classifier-free guidance of the student."""

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

    @property
    def of_pipeline(self) -> float:
        """The `guidance_scale` that the student's pipeline is called with; 1 (off) where the scale is baked in."""
        return 1.0 if self.mode == "baked" else self.scale


@dataclass(frozen=True)
class Guidance:
    """What a student is told of guidance, and what its teacher makes of it.

    - `baked`: the teacher is guided at one scale, of which the student is told nothing.
    - `embedded`: at a scale sampled for each sample, which the student is told (Meng et al. 2023, section 3.1).
    - `cfg`: not at all; some prompts are dropped, so that the student learns both branches.

    Attributes:
        unconditional: the empty prompt, a batch of 1.
    """

    unconditional: Conditioning
    config: GuidanceConfig

    def sample(self, conditioning: Conditioning, random: PerSampleRandom) -> tuple[Conditioning, Tensor | float]:
        """What the student is conditioned on (B), and the scale to guide its teacher with, (B,) or one number."""
        config, device = self.config, conditioning.device
        if config.mode == "embedded":
            low, high = config.range
            scale = (low + (high - low) * random.uniform()).to(device)
            return conditioning.with_guidance(scale), scale
        if config.mode == "cfg":
            kept = (random.uniform() >= config.prompt_dropout).to(device)
            return conditioning.where(kept, self.unconditional), 1.0
        return conditioning, config.scale

    def predict(
        self, teacher: Denoiser, x_t: Tensor, t: Tensor, conditioning: Conditioning, scale: Tensor | float
    ) -> Prediction:
        """The teacher at x_t (B, ...), t (B,), guided at `scale`; at 1 for all the unconditional branch is not computed."""
        return teacher.guided(x_t, t, conditioning.with_guidance(None), self.unconditional, scale)
