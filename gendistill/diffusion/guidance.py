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
from gendistill.settings.section import Section


class GuidanceConfig(Section):
    """What becomes of classifier-free guidance in the student."""

    mode: Literal["embedded", "baked", "cfg"] = Field(
        "baked", description="embedded: the scale stays a slider; baked: one scale; cfg: both branches are kept"
    )
    scale: float = Field(3.0, ge=1, description="to bake in, or to sample with by default; 1 is none")
    range: tuple[float, float] = Field((1.0, 6.0), description="scales that an embedded student learns")
    prompt_dropout: float = Field(0.15, ge=0, le=1, description="share of empty prompts, for cfg students")

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
