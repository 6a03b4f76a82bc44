"""What the methods for denoisers share: students with their averages, and a loss that is a sum of parts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, Networks, full_networks, lora_config, lora_networks
from gendistill.methods.recipe import RunConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import Family
from gendistill.settings.schedule import weight_at
from gendistill.training.ema import MovingAverage
from gendistill.training.method import Method, OptimizerSettings, Update

LossAndLogs = tuple[Tensor, dict[str, Tensor]]


class Critic(Protocol):
    """A network that a loss trains for itself, beside the student.

    Attributes:
        name: of its optimizer.
        module: as it is; `network` is the same, wrapped for distributed training.
        parameters: by name.
    """

    network: Any

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def settings(self) -> OptimizerSettings: ...


class AuxiliaryLoss(Protocol):
    """A loss that stands beside a method's own.

    Attributes:
        name: in the log.
        weight: a number, or a schedule by step.
        critics: networks that it trains for itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float | dict[float, float]: ...

    @property
    def critics(self) -> Sequence[Critic]: ...

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Generator[Update, None, LossAndLogs]:
        """Yield the updates of the critics, which step before the student, and return the student's loss (0-d) with what it
        is made of, for the log."""
        ...


class DenoiserMethod(Method):
    """A method that trains one denoiser, or several; the first one is the student of the run.

    Attributes:
        auxiliary: losses that are added to the method's own.
    """

    networks: Networks
    auxiliary: Sequence[AuxiliaryLoss] = ()

    @property
    def students(self) -> Mapping[str, Networks]:
        """The trained denoisers by optimizer name; `student` is the one that the run is for."""
        return {"student": self.networks}

    @property
    def averages(self) -> Mapping[str, MovingAverage]:
        return self.students

    @property
    def monotone(self) -> bool:
        return not self.critics

    @property
    def critics(self) -> list[Critic]:
        """All networks that are trained beside the students."""
        return [critic for loss in self.auxiliary for critic in loss.critics]

    @property
    def with_student(self) -> tuple[str, ...]:
        """Optimizers that step on the student's own loss, beside the student's."""
        return ()

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        """The method's own loss of a batch (0-d), and what it is made of, for the log."""
        raise NotImplementedError

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        total, logs = self.loss(batch, step, random)
        for part in self.auxiliary:
            if weight := weight_at(part.weight, step):
                value, terms = yield from part.updates(batch, step, random)
                logs = {**logs, "own": total.detach(), part.name: value.detach(), **terms}
                total = total + weight * value
        yield Update(total, ("student", *self.with_student), {"loss": total.detach(), **logs})

    def trained_modules(self) -> dict[str, nn.Module]:
        students = {name: networks.student.network for name, networks in self.students.items()}
        return students | {critic.name: critic.module for critic in self.critics}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        for name, networks in self.students.items():
            networks.student = networks.student.with_network(wrapped[name])
        for critic in self.critics:
            critic.network = wrapped[critic.name]

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        students = {name: networks.trained for name, networks in self.students.items()}
        return students | {critic.name: critic.parameters for critic in self.critics}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        return next((critic.settings for critic in self.critics if critic.name == name), OptimizerSettings())

    def held_networks(self) -> list[nn.Module]:
        """All networks of a training step: the teacher, students, their averages, critics."""
        held = [self.networks.teacher.network]
        for networks in self.students.values():
            held += [networks.student.network, networks.average.network]
        return [*held, *(critic.module for critic in self.critics)]


@dataclass(frozen=True)
class DenoiserContext:
    """What the stages of a denoiser's method are made of.

    Attributes:
        config: of the run, with the sections of all methods.
        family: of the teacher's pipeline.
        teacher: frozen.
        unconditional: the empty prompt (batch of 1), for guidance.
        start: a network that the student is initialised from in place of the teacher's.
        opened: the teacher's pipeline, for losses that need its codec or prompts; None on the meta device.
    """

    config: RunConfig
    family: Family
    teacher: Denoiser
    unconditional: Conditioning
    start: Any = None
    opened: Teacher | None = None

    def networks(self) -> Networks:
        """Teacher, student and average as the config requests them: an adapter, or full weights with or without a guidance
        scale as an input."""
        config = self.config
        if config.lora.enabled:
            return lora_networks(self.teacher, lora_config(self.family.lora_targets, config.lora.rank, config.lora.alpha))
        embedding = GUIDANCE_EMBEDDING if config.guidance.mode == "embedded" else None
        return full_networks(self.teacher, embedding, self.start)
