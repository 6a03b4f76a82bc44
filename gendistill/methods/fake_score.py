"""The fake score: a denoiser of the student's own samples, trained along with the student."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.step_embedding import StepEmbedding
from gendistill.diffusion.trained_networks import Networks, another_network
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.method import OptimizerSettings


class FakeScoreConfig(Section):
    """The fake score, a denoiser that is trained on the student's samples."""

    steps: int = Field(
        5,
        ge=1,
        description="Updates of the fake score for each update of the student, which is in the last of so many steps",
        json_schema_extra=about("steps", papers.DMD2, "section 4.2"),
    )
    learning_rate_factor: float = Field(
        1.0,
        gt=0,
        description="Ratio of the fake score's learning rate to the student's",
        json_schema_extra=about(paper=papers.TTUR),
    )


class FakeScore:
    """The denoiser of the student's samples, initialised from the teacher: a `Critic` to the trainer.

    The samples of each of the student's steps have a distribution of their own, so that the number of the step is an input
    where there are several (as in TDM).
    """

    name = "fake_score"

    def __init__(self, networks: Networks, config: FakeScoreConfig, num_steps: int = 1) -> None:
        self.denoiser, self.parameters = another_network(networks, self.name)
        self.module: nn.Module = self.denoiser.network
        self.settings = OptimizerSettings(learning_rate_factor=config.learning_rate_factor)
        self.step_embedding = StepEmbedding(self.module, num_steps) if num_steps > 1 else None
        if self.step_embedding is not None:
            self.parameters["step_embedding.vectors"] = self.step_embedding.vectors

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.denoiser.network
        return network

    @network.setter
    def network(self, wrapped: nn.Module) -> None:
        self.denoiser = self.denoiser.with_network(wrapped)

    def of_step(self, step: int) -> Denoiser:
        """The denoiser of samples of the student's step of that number, until the next call."""
        if self.step_embedding is not None:
            self.step_embedding.step = step
        return self.denoiser

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, step: int) -> Prediction:
        """The prediction at x_t (B, ...), t (B,) for samples of the student's step of that number."""
        return self.of_step(step)(x_t, t, conditioning)
