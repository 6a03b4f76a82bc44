"""Teacher, student and the student's moving average: three networks, or one base under several adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from gendistill.diffusion.denoiser import Denoiser
from gendistill.samplers.precision import in_own_precision
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


GUIDANCE_EMBEDDING = 256
STUDENT, AVERAGE, PREVIOUS = "student", "average", "previous"

Switch = tuple[tuple[str, ...], bool]  # of a layer: the adapters that are active, and whether all are off


@dataclass
class Networks(MovingAverage):
    """What a distillation method works with.

    `student` is the one that learns; `average` holds its exponential moving average (same structure, never a gradient).
    `trained` and `averaged` are their parameters, by the same names in the same order. `lora` is None in full mode.
    """

    teacher: Denoiser
    student: Denoiser
    average: Denoiser
    trained: dict[str, nn.Parameter]
    averaged: dict[str, nn.Parameter]
    lora: LoraConfig | None = None


def full_networks(teacher: Denoiser, time_cond_proj_dim: int | None = None, start: Any = None) -> Networks:
    """Three networks, the student initialised from the teacher, in float32 whatever the teacher is in.

    All are in evaluation mode, as a LoRA's base is: which conditions are dropped is the method's choice, not the network's.

    With `time_cond_proj_dim` the student takes a guidance scale as well; that input starts at zero, so that the student
    starts as the teacher.

    Args:
        start: a network to initialise the student from in place of the teacher's.
    """
    begins = teacher.network if start is None else start
    student = copy_network(begins, time_cond_proj_dim).float().eval().requires_grad_(True)
    average = copy.deepcopy(student).requires_grad_(False)
    return Networks(
        teacher,
        teacher.with_network(student),
        teacher.with_network(average),
        dict(student.named_parameters()),
        dict(average.named_parameters()),
    )


def next_networks(networks: Networks) -> Networks:
    """Those of the next stage: the average has become the teacher, and the student and its average start as it."""
    average = networks.average
    if networks.lora is None:
        return full_networks(average, average.network.config.get("time_cond_proj_dim"))
    shared: SharedBase = average.network.shared
    previous_view, student_view, average_view = (shared.adapter(name) for name in (PREVIOUS, STUDENT, AVERAGE))
    previous, student = shared.parameters(PREVIOUS), shared.parameters(STUDENT)
    with torch.no_grad():
        for name, parameter in networks.averaged.items():
            previous[name].copy_(parameter)
            student[name].copy_(parameter)
    return Networks(
        average.with_network(previous_view),
        average.with_network(student_view),
        average.with_network(average_view),
        student,
        networks.averaged,
        shared.lora,
    )


def copy_network(network: Any, time_cond_proj_dim: int | None) -> Any:
    """A copy that is w-conditioned where `time_cond_proj_dim` says so."""
    if network.config.get("time_cond_proj_dim") == time_cond_proj_dim:
        return copy.deepcopy(network)
    copied = type(network).from_config(network.config, time_cond_proj_dim=time_cond_proj_dim)
    missing, unexpected = copied.load_state_dict(network.state_dict(), strict=False)
    assert set(missing) <= {"time_embedding.cond_proj.weight"}, missing
    assert not unexpected, unexpected
    nn.init.zeros_(copied.time_embedding.cond_proj.weight)
    return copied.to(next(network.parameters()).device)


def lora_config(targets: Sequence[str], rank: int, alpha: int | None = None) -> LoraConfig:
    """An adapter of the layers called `targets` (`Family.lora_targets`); its scale is the rank where `alpha` is None."""
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets), init_lora_weights="gaussian")


def lora_networks(teacher: Denoiser, lora: LoraConfig) -> Networks:
    """One frozen base; the student and its average are two low-rank adapters on it, the teacher is none."""
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
    """A further trained denoiser that starts as the teacher, and its parameters by name: a fake score, say.

    In LoRA mode it is one more adapter on the base that all networks share, called `name`; else a copy of the teacher's
    network in float32.
    """
    teacher = networks.teacher
    if networks.lora is not None:
        shared: SharedBase = networks.average.network.shared
        return teacher.with_network(shared.adapter(name, trained=True)), shared.parameters(name)
    network = copy.deepcopy(teacher.network).float().eval().requires_grad_(True)
    return teacher.with_network(network), dict(network.named_parameters())


def adapter_parameters(network: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """An adapter's parameters by names that do not contain the adapter's own name."""
    for name, parameter in network.named_parameters():
        if f".{adapter}." in name:
            yield name.replace(f".{adapter}.", "."), parameter


class SharedBase:
    """One frozen network under any number of low-rank adapters, each declared by name.

    The adapter of a forward pass is part of that pass: it is on in the pass and in its recomputation by gradient
    checkpointing, in whatever order the networks on this base are called. Between the calls no adapter is on, and switching
    one never touches `requires_grad`, as PEFT's own `set_adapter` and `disable_adapters` do.

    Args:
        network: a diffusers model of no adapters yet; no weight of its own learns from now on.
        lora: the configuration of all the adapters.
    """

    def __init__(self, network: Any, lora: LoraConfig) -> None:
        self.network, self.lora = network.requires_grad_(False), lora
        self._layers: list[Any] = []

    def adapter(self, name: str, *, trained: bool = False) -> AdapterView:
        """The network with the adapter `name` on, which is added in float32 where there is none of that name.

        Args:
            trained: whether a new adapter's parameters require gradients.
        """
        network = self.network
        if name not in getattr(network, "peft_config", {}):
            before = {parameter: parameter.requires_grad for parameter in network.parameters()}
            with network.device:  # of which PEFT, by itself, makes no meta device
                network.add_adapter(self.lora, name)
            for parameter, requires_grad in before.items():
                parameter.requires_grad_(requires_grad)
            for parameter in self.parameters(name).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(trained)
            self._layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
            self._switch([((name,), True)] * len(self._layers))
        return AdapterView(self, name)

    def without_adapter(self) -> AdapterView:
        """The network as it was before any adapter."""
        return AdapterView(self, None)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters by names that do not contain the adapter's own name."""
        return dict(adapter_parameters(self.network, name))

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """The adapter `name` on, or none, while the context is open."""
        with self._switched([((name,) if name else (), name is None)] * len(self._layers)):
            yield

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass, each with the adapter that was on in its forward pass."""
        self.network.enable_gradient_checkpointing(self._checkpoint)

    def _checkpoint(self, module: Any, *args: object) -> object:
        forward = self._state()

        def compute(*args: object) -> object:
            with self._switched(forward):
                return module(*args)

        return checkpoint(compute, *args, use_reentrant=False)

    @contextmanager
    def _switched(self, state: list[Switch]) -> Iterator[None]:
        before = self._state()
        self._switch(state)
        try:
            yield
        finally:
            self._switch(before)

    def _state(self) -> list[Switch]:
        return [(tuple(layer.active_adapters), layer.disable_adapters) for layer in self._layers]

    def _switch(self, state: list[Switch]) -> None:
        for layer, (names, disabled) in zip(self._layers, state, strict=True):
            layer._active_adapter, layer._disable_adapters = list(names), disabled  # PEFT's setters change requires_grad


class AdapterView(nn.Module):
    """A shared base with one adapter on, or with none."""

    def __init__(self, shared: SharedBase, adapter: str | None) -> None:
        super().__init__()
        self.shared, self.adapter = shared, adapter
        self.base = shared.network
        self.config = self.base.config

    def enable_gradient_checkpointing(self) -> None:
        self.shared.enable_gradient_checkpointing()

    def forward(self, *args: object, **kwargs: object) -> object:
        weight = next(self.base.parameters())
        in_precision = in_own_precision(weight.dtype, weight.device.type)  # accelerate has turned autocast on again
        with self.shared.using(self.adapter), in_precision:
            return self.base(*args, **kwargs)
