"""What a distillation method is to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gendistill.runtime.random import PerSampleRandom
from gendistill.training.ema import MovingAverage


@dataclass(frozen=True)
class Update:
    """One optimizer step's worth of a batch: a loss to differentiate and the optimizer that takes the gradient.

    Attributes:
        given: what other networks that learn gave to the loss, a number (0-d) each, by optimizer name. Where it is not
            finite, that network is to blame for a loss that is not.
        beside: other optimizers that take the same gradient: of what learns with the student, such as regressors.
    """

    loss: Tensor
    optimizer: str = "student"
    logs: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerSettings:
    """What a method wants of one of its optimizers.

    Attributes:
        learning_rate_factor: times the trainer's.
        betas: of Adam.
    """

    learning_rate_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


class Method(ABC):
    """A distillation method: owns networks, yields losses.

    `networks` holds the average that becomes the student. What learns is named by its optimizer: `student`, and whatever
    else a method trains (a discriminator, a second student).
    """

    name: str
    networks: MovingAverage
    losses_fall = True  # whether a loss that grows is a sign of trouble; in a game of two it is not

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules that learn, by optimizer name: what the trainer wraps for distributed work."""

    @abstractmethod
    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        """Called once with the wrapped modules; the method calls those from then on."""

    @abstractmethod
    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Per optimizer, its parameters by name; the dictionaries are the method's own, and are changed where they are."""

    def buffers(self) -> dict[str, Tensor]:
        """What else training changes in the modules that learn, by name: running statistics, singular vectors."""
        return {}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        """Of the optimizer called `name`."""
        return OptimizerSettings()

    def complaint(self, logs: dict[str, float]) -> str | None:
        """Why training should end with the best that there is so far; asked each time that losses are logged."""
        return None

    def memory(self) -> dict[str, Any]:
        """What the method remembers between steps beside its tensors: its own dictionary, which a resumed run is put into."""
        return {}

    @abstractmethod
    def updates(self, batch: Any, random: PerSampleRandom) -> Iterator[Update]:
        """The losses of a batch, in the order in which their optimizers step (critic before student, say)."""

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Called after the optimizers have stepped: the average follows here."""
