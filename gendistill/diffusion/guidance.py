"""How classifier-free guidance (Ho & Salimans 2022) enters a student, the same for every method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.run.config import GuidanceConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction


@dataclass(frozen=True)
class Guidance:
    """What a student is told of guidance, and what its teacher makes of it.

    - `baked`: the teacher is guided at one scale, of which the student is told nothing.
    - `embedded`: at a scale drawn for each sample, which the student is told (Meng et al. 2023, section 3.1).
    - `cfg`: not at all; some prompts are dropped, so that the student learns both branches.

    Attributes:
        unconditional: the empty prompt, a batch of 1.
    """

    unconditional: Conditioning
    config: GuidanceConfig

    def draw(self, conditioning: Conditioning, random: PerSampleRandom) -> tuple[Conditioning, Tensor | float]:
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
