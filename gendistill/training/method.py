"""The interface between a distillation method and the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Step
from gendistill.training.ema import MovingAverage


@dataclass(frozen=True)
class Update:
    """A loss, and the optimizers that step on its gradient.

    Attributes:
        loss: a scalar (0-d).
        optimizers: names. The first optimizer is that of the network that the loss trains; the others step on the same gradient
            (regressors that are trained with the student, for example).
        logs: scalars (0-d) for the log.
        watch: outputs (0-d) of other trained networks that the loss depends on, by optimizer name. A network whose output is
            not finite is reported as the cause of a loss that is not finite.
    """

    loss: Tensor
    optimizers: tuple[str, ...] = ("student",)
    logs: dict[str, Tensor] = field(default_factory=dict)
    watch: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of one optimizer of a method.

    Attributes:
        learning_rate_factor: factor on the trainer's learning rate.
        betas: beta_1 and beta_2 of Adam.
    """

    learning_rate_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


class Method(ABC):
    """A distillation method: it owns networks and yields losses.

    Attributes:
        name: name of the method, for messages.
        networks: a `MovingAverage` of this method's kind; its EMA becomes the student.
    """

    name: str
    networks: Any

    @property
    def monotone(self) -> bool:
        """Whether a growing loss is a sign of divergence; it is not in adversarial training."""
        return True

    @property
    def shards(self) -> bool:
        """Whether FSDP may shard all trained modules: they are full networks, called as they are wrapped."""
        return bool(self.networks.shards) and len(self.trained_modules()) == 1

    @property
    def cycle(self) -> int:
        """Number of steps after which the updates repeat: all optimizers step in the last of them, the others are equal."""
        return 1

    @property
    def averages(self) -> Mapping[str, MovingAverage]:
        """All moving averages by optimizer name; `student` is `networks`. They are updated after each step, and saved."""
        return {"student": self.networks}

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module]:
        """The trained modules by optimizer name, which the trainer wraps for distributed training."""

    @abstractmethod
    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        """Use the wrapped modules, by optimizer name, in all forward passes; called once."""

    @abstractmethod
    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of each optimizer by name; the trainer may replace them in these dictionaries."""

    def held_networks(self) -> list[nn.Module]:
        """All networks that a training step computes gradients in or through."""
        return list(self.trained_modules().values())

    def buffers(self) -> dict[str, Tensor]:
        """Buffers of the trained modules that training changes, by name: running statistics, singular vectors."""
        return {}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        """Settings of the optimizer called `name`."""
        return OptimizerSettings()

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """The reason to end training with its best checkpoint so far, or None. Called with the values of each log line, and
        with an empty mapping after each validation."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """JSON state, other than tensors, that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        assert not state

    def weights_of(self, step: int) -> None:
        """Called when the EMA got the weights that it had after optimizer step `step`: at the resumption of a run, and when the
        best weights become the student."""
        return

    @abstractmethod
    def updates(self, batch: Any, step: Step, random: PerSampleRandom) -> Iterator[Update]:
        """The losses of a batch at optimizer step `step`, in the order of their optimizer steps (a critic before its
        student, for example). All random numbers come from `random`."""

    def micro_batch(self, random: PerSampleRandom) -> AbstractContextManager[None]:
        """The context in which each update of a micro-batch is computed, with its backward pass; `random` is that of the
        micro-batch, for numbers that do not depend on what was computed before."""
        return nullcontext()

    def after_step(self, step: int, skipped: Collection[str] = ()) -> None:
        """Update the moving averages after optimizer step `step` (from 1), but for networks whose optimizer skipped it."""
        for name, average in self.averages.items():
            if name not in skipped:
                average.follow(step)
