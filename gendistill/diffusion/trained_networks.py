"""Teacher, student and the EMA of the student: three networks, or one frozen base with several LoRA adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from gendistill.diffusion.denoiser import Denoiser
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.ema import MovingAverage


class LoraSettings(Section):
    """A low-rank adapter on the frozen teacher, trained instead of all weights."""

    enabled: bool = Field(
        False,
        description="Train a LoRA on the frozen teacher instead of all weights",
        json_schema_extra=about(paper=papers.LORA),
    )
    rank: int = Field(
        64,
        ge=1,
        description="Rank of the adapter's matrices",
        json_schema_extra=about("dimensions", papers.LORA, "section 4.1"),
    )
    alpha: int | None = Field(
        None,
        ge=1,
        description="Scale of the adapter: its update is multiplied by alpha / rank; null is the rank",
        json_schema_extra=about(paper=papers.LORA, at="section 4.1"),
    )
    quantization: Literal["none", "int8-weights", "nf4-weights"] = Field(
        "none",
        description="Weights of the frozen teacher in 8 or 4 bits, unpacked while their layer computes; saves memory with "
        "trainer.gradient_checkpointing, as the unpacked weights are kept for the gradient otherwise",
        json_schema_extra=about(paper=papers.QLORA, at="section 3"),
    )


GUIDANCE_EMBEDDING = 256
STUDENT, AVERAGE, PREVIOUS = "student", "average", "previous"

AdapterState = tuple[tuple[str, ...], bool]  # of a PEFT layer: its active adapters, and whether adapters are disabled


@dataclass
class Networks(MovingAverage):
    """The networks of a distillation method.

    Attributes:
        teacher: frozen.
        student: the trained network.
        average: the exponential moving average of the student, of the same structure, without gradients.
        trained, averaged: the parameters of student and average, by the same names in the same order.
        lora: the adapter's configuration; None where all weights are trained.
    """

    teacher: Denoiser
    student: Denoiser
    average: Denoiser
    trained: dict[str, nn.Parameter]
    averaged: dict[str, nn.Parameter]
    lora: LoraConfig | None = None


def full_networks(teacher: Denoiser, time_cond_proj_dim: int | None = None, start: Denoiser | None = None) -> Networks:
    """Three networks; the student is initialised from the teacher, in float32 for a teacher of any precision.

    All networks are in evaluation mode, as the base of a LoRA is: conditions are dropped by the method, not by the network.

    With `time_cond_proj_dim` the student also has the guidance scale as an input, whose projection is initialised to zero, so
    that the student equals the teacher at first.

    Args:
        start: a denoiser to initialise the student from instead of the teacher; it may have another prediction type.
    """
    initial = teacher if start is None else start
    student = copy_network(initial.network, time_cond_proj_dim).float().eval().requires_grad_(True)
    average = copy.deepcopy(student).requires_grad_(False)
    return Networks(
        teacher,
        initial.with_network(student),
        initial.with_network(average),
        dict(student.named_parameters()),
        dict(average.named_parameters()),
    )


def next_networks(networks: Networks) -> Networks:
    """The networks of the next stage: the EMA becomes the teacher, and initialises the new student and its EMA."""
    average = networks.average
    if networks.lora is None:
        return full_networks(average, average.network.config.get("time_cond_proj_dim"))
    shared: SharedBase = average.network.shared
    teacher, previous = average.with_network(shared.adapter(PREVIOUS)), shared.parameters(PREVIOUS)
    with torch.no_grad():
        for name, parameter in networks.averaged.items():
            previous[name].copy_(parameter)
    return networks_from_adapter(average, teacher)


def networks_from_adapter(average: Denoiser, teacher: Denoiser) -> Networks:
    """Student and EMA from the EMA of an earlier stage, on the same base, where only the teacher's adapter is kept of others.

    Args:
        teacher: an adapter of that base, or the base's network alone.
    """
    shared: SharedBase = average.network.shared
    kept = teacher.network.adapter if isinstance(teacher.network, AdapterView) else None
    shared.keep(STUDENT, AVERAGE, *([kept] if kept else []))
    student, averaged = shared.parameters(STUDENT), shared.parameters(AVERAGE)
    with torch.no_grad():
        for name, parameter in averaged.items():
            student[name].copy_(parameter)
    return Networks(
        teacher.with_network(shared.adapter(kept) if kept else shared.without_adapter()),
        average.with_network(shared.adapter(STUDENT)),
        average.with_network(shared.adapter(AVERAGE)),
        student,
        averaged,
        shared.lora,
    )


def copy_network(network: Any, time_cond_proj_dim: int | None) -> Any:
    """A copy of the network, conditioned on the guidance scale w where `time_cond_proj_dim` is not None."""
    if network.config.get("time_cond_proj_dim") == time_cond_proj_dim:
        return copy.deepcopy(network)
    copied = type(network).from_config(network.config, time_cond_proj_dim=time_cond_proj_dim)
    missing, unexpected = copied.load_state_dict(network.state_dict(), strict=False)
    assert set(missing) <= {"time_embedding.cond_proj.weight"}, missing
    assert not unexpected, unexpected
    nn.init.zeros_(copied.time_embedding.cond_proj.weight)
    return copied.to(next(network.parameters()).device)


def lora_config(targets: Sequence[str], rank: int, alpha: int | None = None) -> LoraConfig:
    """The configuration of an adapter of the layers `targets` (`Family.lora_targets`); `alpha` None means the rank."""
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets), init_lora_weights="gaussian")


def lora_networks(teacher: Denoiser, lora: LoraConfig) -> Networks:
    """One frozen base; the student and its EMA are two low-rank adapters on it, the teacher is the base without adapter."""
    shared = SharedBase(teacher.network, lora)
    student, average = shared.adapter(STUDENT, trained=True), shared.adapter(AVERAGE)
    trained, averaged = shared.parameters(STUDENT), shared.parameters(AVERAGE)
    with torch.no_grad():
        for name, parameter in averaged.items():
            parameter.copy_(trained[name])
    return Networks(
        teacher.with_network(shared.without_adapter()),
        teacher.with_network(student),
        teacher.with_network(average),
        trained,
        averaged,
        shared.lora,
    )


def another_network(networks: Networks, name: str) -> tuple[Denoiser, dict[str, nn.Parameter]]:
    """Another trained denoiser, initialised from the teacher, and its parameters by name: for example a fake score network.

    With LoRA it is one more adapter `name` on the shared base; else a copy of the teacher's network in float32, with the
    guidance scale as an input where the student has it.
    """
    teacher, student = networks.teacher, networks.student
    if networks.lora is not None:
        shared: SharedBase = networks.average.network.shared
        return teacher.with_network(shared.adapter(name, trained=True)), shared.parameters(name)
    network = (
        copy_network(teacher.network, student.network.config.get("time_cond_proj_dim")).float().eval().requires_grad_(True)
    )
    return teacher.with_network(network), dict(network.named_parameters())


def adapter_parameters(network: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of an adapter by names without the adapter's name."""
    for name, parameter in network.named_parameters():
        if f".{adapter}." in name:
            yield name.replace(f".{adapter}.", "."), parameter


class SharedBase:
    """One frozen network with any number of low-rank adapters by name.

    Each forward pass has its own adapter, which is active in the pass and in its recomputation by gradient checkpointing, for
    any order of calls of the networks on this base. Switching adapters never changes `requires_grad`, which PEFT's own
    `set_adapter` and `disable_adapters` do.

    Args:
        network: a diffusers model without adapters; its weights are frozen.
        lora: the configuration of all adapters.

    Attributes:
        hooks: hooks of single adapters in the base, which `keep` removes.
    """

    def __init__(self, network: Any, lora: LoraConfig) -> None:
        self.network, self.lora = network.requires_grad_(False), lora
        self.hooks: list[RemovableHandle] = []
        self._layers: list[Any] = []

    def adapter(self, name: str, *, trained: bool = False) -> AdapterView:
        """The network with the adapter `name`, which is added in float32 if it does not exist.

        Args:
            trained: whether the parameters of a new adapter require gradients.
        """
        network = self.network
        if name not in getattr(network, "peft_config", {}):
            before = {parameter: parameter.requires_grad for parameter in network.parameters()}
            with network.device:  # PEFT would not create the adapter on the meta device by itself
                network.add_adapter(self.lora, name)
            for parameter, requires_grad in before.items():
                parameter.requires_grad_(requires_grad)
            for parameter in self.parameters(name).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(trained)
            self._layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
            self._switch([((name,), True)] * len(self._layers))
        return AdapterView(self, name)

    def keep(self, *names: str) -> None:
        """Remove all other adapters, and all hooks."""
        while self.hooks:
            self.hooks.pop().remove()
        self._switch([((names[0],), True)] * len(self._layers))  # PEFT would activate another one in place of a removed one
        if others := [name for name in self.network.peft_config if name not in names]:
            self.network.delete_adapters(others)

    def without_adapter(self) -> AdapterView:
        """The base network with all adapters disabled."""
        return AdapterView(self, None)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of an adapter by names without the adapter's name."""
        return dict(adapter_parameters(self.network, name))

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Activate the adapter `name`, or none, within the context."""
        with self._switched([((name,) if name else (), name is None)] * len(self._layers)):
            yield

    @property
    def active(self) -> str | None:
        """The adapter that is active now; None for the base alone."""
        names, disabled = self._state()[0]
        return None if disabled else names[0]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass, each with the adapter of its forward pass."""
        self.network.enable_gradient_checkpointing(self._checkpoint)

    def _checkpoint(self, module: Any, *args: object) -> object:
        forward = self._state()

        def compute(*args: object) -> object:
            with self._switched(forward):
                return module(*args)

        return checkpoint(compute, *args, use_reentrant=False)

    @contextmanager
    def _switched(self, state: list[AdapterState]) -> Iterator[None]:
        before = self._state()
        self._switch(state)
        try:
            yield
        finally:
            self._switch(before)

    def _state(self) -> list[AdapterState]:
        return [(tuple(layer.active_adapters), layer.disable_adapters) for layer in self._layers]

    def _switch(self, state: list[AdapterState]) -> None:
        for layer, (names, disabled) in zip(self._layers, state, strict=True):
            layer._active_adapter, layer._disable_adapters = list(names), disabled  # PEFT's setters change requires_grad


class AdapterView(nn.Module):
    """A shared base with one adapter, or with none, as a module."""

    def __init__(self, shared: SharedBase, adapter: str | None) -> None:
        super().__init__()
        self.shared, self.adapter = shared, adapter
        self.base = shared.network
        self.config = self.base.config

    @property
    def is_active(self) -> bool:
        """Whether a forward pass with this adapter, or its recomputation, is under way."""
        return self.shared.active == self.adapter

    def enable_gradient_checkpointing(self) -> None:
        self.shared.enable_gradient_checkpointing()

    def forward(self, *args: object, **kwargs: object) -> object:
        with self.shared.using(self.adapter):
            return self.base(*args, **kwargs)
