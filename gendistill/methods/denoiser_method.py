"""The base of the methods for denoisers: students with their EMA, and a loss with auxiliary losses."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gendistill.data.batches import Batch, LatentData
from gendistill.diffusion.added_loras import AddedLoras
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import (
    GUIDANCE_EMBEDDING,
    Networks,
    full_networks,
    lora_config,
    lora_networks,
    networks_from_adapter,
)
from gendistill.methods.recipe import RunConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import StudentSpec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import Family
from gendistill.schedulers import usable_solvers
from gendistill.settings.schedule import weight_at
from gendistill.training.ema import MovingAverage
from gendistill.training.method import Method, OptimizerSettings, Update

LossAndLogs = tuple[Tensor, dict[str, Tensor]]


class Critic(Protocol):
    """A network that a loss trains in addition to the student, such as a discriminator.

    Attributes:
        name: name of its optimizer.
        module: the network, not wrapped.
        network: the network, wrapped for distributed training.
        parameters: its parameters by name.
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
    """A loss that is added to the loss of a method.

    Attributes:
        name: name in the log.
        weight: a number, or a schedule by step.
        critics: further networks that it trains.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float | dict[float, float]: ...

    @property
    def critics(self) -> Sequence[Critic]: ...

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that it changes, as `Method.buffers`."""
        ...

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Generator[Update, None, LossAndLogs]:
        """Yield the updates of the critics, which step before the student, and return the student's loss (0-d) and its terms
        for the log."""
        ...


class DenoiserMethod(Method):
    """A method that trains one or several denoisers; the first one is the student of the run.

    Attributes:
        auxiliary: losses that are added to the method's own.
        solver_grid: number of timesteps of the grid that the student is trained on; None where it knows others too.
        added_loras: LoRAs that are added to all networks for each micro-batch.
    """

    networks: Networks
    solver_grid: int | None = None
    auxiliary: Sequence[AuxiliaryLoss] = ()
    added_loras: AddedLoras | None = None

    @property
    def students(self) -> Mapping[str, Networks]:
        """The trained denoisers by optimizer name; `student` is the result of the run."""
        return {"student": self.networks}

    @property
    def averages(self) -> Mapping[str, MovingAverage]:
        return self.students

    @property
    def monotone(self) -> bool:
        return not self.critics

    @property
    def critics(self) -> list[Critic]:
        """All networks that are trained in addition to the students."""
        return [critic for loss in self.auxiliary for critic in loss.critics]

    @property
    def with_student(self) -> tuple[str, ...]:
        """Further optimizers that step on the student's loss."""
        return ()

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        """The method's own loss of a batch (0-d), and its terms for the log."""
        raise NotImplementedError

    def updates(self, batch: Batch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        yield from self.student_updates(self.loss(batch, step, random), batch, step, random)

    def student_updates(
        self, own: LossAndLogs, batch: Batch, step: int, random: PerSampleRandom, watch: dict[str, Tensor] | None = None
    ) -> Iterator[Update]:
        """The update of the student by the method's own loss and the auxiliary losses, whose critics step before it.

        Args:
            watch: outputs of other networks that the own loss depends on, see `Update.watch`.
        """
        total, logs = own
        for auxiliary in self.auxiliary:
            if weight := weight_at(auxiliary.weight, step):
                value, terms = yield from auxiliary.updates(batch, step, random)
                logs = {**logs, "own": total.detach(), auxiliary.name: value.detach(), **terms}
                total = total + weight * value
        yield Update(total, ("student", *self.with_student), {"loss": total.detach(), **logs}, watch or {})

    def trained_modules(self) -> dict[str, nn.Module]:
        students = {name: networks.student.network for name, networks in self.students.items()}
        return students | {critic.name: critic.module for critic in self.critics}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        for name, networks in self.students.items():
            networks.student = networks.student.with_network(wrapped[name])
        for critic in self.critics:
            critic.network = wrapped[critic.name]

    def buffers(self) -> dict[str, Tensor]:
        return {f"{loss.name}.{name}": buffer for loss in self.auxiliary for name, buffer in loss.buffers().items()}

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        students = {name: networks.trained for name, networks in self.students.items()}
        return students | {critic.name: critic.parameters for critic in self.critics}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        return next((critic.settings for critic in self.critics if critic.name == name), OptimizerSettings())

    def micro_batch(self, random: PerSampleRandom) -> AbstractContextManager[None]:
        return nullcontext() if self.added_loras is None else self.added_loras.added(self.held_networks(), random)

    def held_networks(self) -> list[nn.Module]:
        """All networks of a training step: teacher, students, their EMA, critics."""
        modules = [self.networks.teacher.network]
        for networks in self.students.values():
            modules += [networks.student.network, networks.average.network]
        return [*modules, *(critic.module for critic in self.critics)]


@dataclass(frozen=True)
class DenoiserContext:
    """The inputs of the stages of a denoiser's method.

    Attributes:
        config: the settings of the run, with the sections of all methods.
        family: family of the teacher's pipeline.
        teacher: frozen.
        unconditional: the encoded empty prompt (batch of 1), for guidance.
        start: a denoiser that the student is initialised from instead of the teacher.
        start_spec: the sampling settings of the student that it is from, if any.
        prepared: the networks that `networks` returns, where a method that continues others has made them.
        opened: the teacher's pipeline, for losses that need its codec; its text encoders are released. None on the meta device.
        examples: a batch of the training data, on which pruning measures importance; None on the meta device.
        data: the encoded training data; None on the meta device.
    """

    config: RunConfig
    family: Family
    teacher: Denoiser
    unconditional: Conditioning
    start: Denoiser | None = None
    opened: Teacher | None = None
    examples: Batch | None = None
    data: LatentData | None = None
    start_spec: StudentSpec | None = None
    prepared: Networks | None = None

    @property
    def solvers(self) -> list[str]:
        """Those of `config.solvers` that sample with the teacher's noise schedule and pipeline."""
        usable = usable_solvers(self.config.solvers, self.teacher.schedule.kind)
        return [solver for solver in usable if solver in self.family.solvers] or ["ddim"]

    def networks(self) -> Networks:
        """Teacher, student and EMA by the settings: an adapter, or full weights with or without the guidance scale as an
        input."""
        config = self.config
        if self.prepared is not None:
            return self.prepared
        if config.lora.enabled and self.start is not None:
            return networks_from_adapter(self.start, self.teacher)
        if config.lora.enabled:
            return lora_networks(self.teacher, lora_config(self.family.lora_targets, config.lora.rank, config.lora.alpha))
        embedded = config.guidance.mode == "embedded" and self.family.embeds_guidance
        return full_networks(self.teacher, GUIDANCE_EMBEDDING if embedded else None, self.start)
