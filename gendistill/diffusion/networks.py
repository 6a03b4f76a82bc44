"""Teacher, student and the student's moving average: three networks, or one base with adapters switched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from gendistill.average import MovingAverage
from gendistill.diffusion.denoiser import Denoiser, in_own_precision

LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
GUIDANCE_EMBEDDING = 256
STUDENT, AVERAGE, PREVIOUS = "student", "average", "previous"


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

    With `time_cond_proj_dim` the student takes a guidance scale as well; that input starts at zero, so that the student
    starts as the teacher.

    Args:
        start: a network to initialise the student from in place of the teacher's.
    """
    begins = teacher.network if start is None else start
    student = copy_network(begins, time_cond_proj_dim).float().train().requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
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
    base = average.network.base
    if PREVIOUS not in base.peft_config:
        base.add_adapter(networks.lora, PREVIOUS)
    previous = dict(adapter_parameters(base, PREVIOUS))
    student = dict(adapter_parameters(base, STUDENT))
    with torch.no_grad():
        for name, parameter in networks.averaged.items():
            previous[name].data = parameter.detach().clone()
            student[name].copy_(parameter)
    views = {name: average.with_network(AdapterView(base, name)) for name in (PREVIOUS, STUDENT, AVERAGE)}
    return Networks(views[PREVIOUS], views[STUDENT], views[AVERAGE], student, networks.averaged, networks.lora)


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


def lora_config(rank: int, alpha: int | None = None) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")


def lora_networks(teacher: Denoiser, rank: int, alpha: int | None = None) -> Networks:
    """One frozen base; the student and its average are two low-rank adapters on it, the teacher is none."""
    base = teacher.network
    lora = lora_config(rank, alpha)
    with base.device:  # of which PEFT, by itself, makes no meta device
        base.add_adapter(lora, STUDENT)
        base.add_adapter(lora, AVERAGE)
    of = {name: dict(adapter_parameters(base, name)) for name in (STUDENT, AVERAGE)}
    with torch.no_grad():
        for name, parameter in of[AVERAGE].items():
            parameter.data = parameter.data.float()
            of[STUDENT][name].data = of[STUDENT][name].data.float()
            parameter.copy_(of[STUDENT][name])
    return Networks(
        teacher.with_network(AdapterView(base, None)),
        teacher.with_network(AdapterView(base, STUDENT)),
        teacher.with_network(AdapterView(base, AVERAGE)),
        of[STUDENT],
        of[AVERAGE],
        lora,
    )


def adapter_parameters(network: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    """An adapter's parameters by names that do not contain the adapter's own name."""
    for name, parameter in network.named_parameters():
        if f".{adapter}." in name:
            yield name.replace(f".{adapter}.", "."), parameter


class AdapterView(nn.Module):
    """The base with one adapter on, or with none: switched just before each call.

    The student must be the last one called before `backward`: gradient checkpointing calls the base again there.
    """

    def __init__(self, base: Any, adapter: str | None) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter
        self.config = base.config

    def forward(self, *args: object, **kwargs: object) -> object:
        if self.adapter is None:
            self.base.disable_adapters()
        else:
            self.base.enable_adapters()
            self.base.set_adapter(self.adapter)
        with in_own_precision(self.base, next(self.base.parameters()).device.type):  # accelerate turns autocast on again
            return self.base(*args, **kwargs)
