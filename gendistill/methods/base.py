"""What a distillation method is to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.data.order import PerSampleRandom
from gendistill.diffusion.networks import Networks


@dataclass(frozen=True)
class Update:
    """One optimizer step's worth of a batch: a loss to differentiate and the optimizer that takes the gradient."""

    loss: Tensor
    optimizer: str = "student"
    logs: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """A distillation method: owns networks, yields losses, says how its student is sampled.

    `networks` holds teacher, student and average; a method that trains more (a discriminator, a score network) adds them
    to `trained_modules` and `trained_parameters` under names of their own.
    """

    name: str
    networks: Networks

    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules that learn, by optimizer name: what the trainer wraps for distributed work."""
        return {"student": self.networks.student.network}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        """Called once with the wrapped modules; the method calls those from then on."""
        self.networks.student = self.networks.student.with_network(wrapped["student"])

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Per optimizer, its parameters by name."""
        return {"student": self.networks.trained}

    @abstractmethod
    def updates(self, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        """The losses of a batch, in the order in which their optimizers step (critic before student, say)."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Called after the optimizers have stepped: the average follows here."""
