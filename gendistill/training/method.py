"""The interface between a distillation method and the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gendistill.runtime.random import PerSampleRandom
from gendistill.training.ema import MovingAverage


@dataclass(frozen=True)
class Update:
    """A loss to differentiate, and the optimizers that step on its gradient.

    Attributes:
        loss: a scalar (0-d).
        optimizers: names. The first one is of the network whose loss this is; others step on the same gradient (regressors
            that learn with the student, say).
        logs: scalars (0-d) for the log.
        watch: outputs (0-d) of other trained networks that the loss depends on, by optimizer name. Where one is not finite,
            that network is named as the cause of a loss that is not.
    """

    loss: Tensor
    optimizers: tuple[str, ...] = ("student",)
    logs: dict[str, Tensor] = field(default_factory=dict)
    watch: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of one optimizer of a method.

    Attributes:
        learning_rate_factor: times the trainer's learning rate.
        betas: of Adam.
    """

    learning_rate_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


class Method(ABC):
    """A distillation method: it owns networks and yields losses.

    Attributes:
        name: of the method, for messages.
        networks: a `MovingAverage` of this method's kind; its average becomes the student.
    """

    name: str
    networks: Any

    @property
    def monotone(self) -> bool:
        """Whether a loss that grows is a sign of trouble. In adversarial training it is not."""
        return True

    @property
    def averages(self) -> Mapping[str, MovingAverage]:
        """All moving averages by the name of the optimizer that trains their network; `student` is `networks`. They
        follow after each step, and are saved."""
        return {"student": self.networks}

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module]:
        """The trained modules by optimizer name; the trainer wraps them for distributed training."""

    @abstractmethod
    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        """Called once with the wrapped modules; the method calls those from then on."""

    @abstractmethod
    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of each optimizer by name; the trainer changes the dictionaries in place."""

    def buffers(self) -> dict[str, Tensor]:
        """Buffers of the trained modules that training changes, by name: running statistics, singular vectors."""
        return {}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        """Settings of the optimizer called `name`."""
        return OptimizerSettings()

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """Why training should end with its best checkpoint so far; None to go on. Called with each line of the log, and with
        an empty one after each validation."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """State beside tensors that a resumed run needs; JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; a method that gives nothing is given nothing."""
        assert not state

    @abstractmethod
    def updates(self, batch: Any, step: int, random: PerSampleRandom) -> Iterator[Update]:
        """The losses of a batch at optimizer step `step` (from 0), in the order in which their optimizers step (a critic
        before its student, say). All random numbers come from `random`."""

    def after_step(self, step: int) -> None:
        """Called after optimizer step `step` (from 1): the averages follow."""
        for average in self.averages.values():
            average.follow(step)
