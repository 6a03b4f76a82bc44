"""A network that is trained while its change is carried over to another one: what a teacher learns, in its student."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from torch import Tensor

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.trained_networks import AVERAGE, Networks, full_networks, lora_networks
from gendistill.training.sharding import full_tensor


@dataclass
class CarriedNetworks(Networks):
    """Networks whose student is a copy of the teacher, while the average is that of the student's change, added to the weights
    of another network of the same structure.

    Attributes:
        offsets: the other network's initial weights minus the teacher's, by name; empty for adapters, which are the change.
    """

    offsets: dict[str, Tensor] = field(default_factory=dict)
    shards = False

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        for name, average in self.averaged.items():
            trained = full_tensor(self.trained[name])
            average.lerp_(trained + self.offsets[name] if self.offsets else trained, 1 - decay)


def carried_networks(teacher: Denoiser, start: Denoiser, lora: LoraConfig | None = None) -> CarriedNetworks:
    """Networks that train the teacher, and whose average is `start` with the average change of the teacher.

    Args:
        start: a denoiser of the teacher's structure and prediction type, such as its student; it may have more inputs.
        lora: the configuration of an adapter, which is trained on the teacher and is the same on `start`.

    Raises:
        ValueError: see `require_same_weights`.
    """
    require_same_weights(teacher, start)
    if lora is not None:
        trained, carried = lora_networks(teacher, lora), lora_networks(start, lora)
        with torch.no_grad():
            for name, parameter in carried.averaged.items():
                parameter.copy_(trained.trained[name])
        return CarriedNetworks(
            trained.teacher, trained.student, carried.average, trained.trained, carried.averaged, trained.lora
        )
    networks = full_networks(teacher)
    average = copy.deepcopy(start.network).float().eval().requires_grad_(False)
    weights = dict(average.named_parameters())
    averaged = {name: weights[name] for name in networks.trained}
    offsets = {name: (averaged[name] - networks.trained[name]).detach() for name in averaged}
    return CarriedNetworks(teacher, networks.student, start.with_network(average), networks.trained, averaged, offsets=offsets)


@torch.no_grad()
def fine_tuned_teacher(networks: CarriedNetworks) -> Denoiser:
    """The teacher with the average change of its weights, which the networks' average carries on another network; frozen."""
    teacher, offsets = networks.teacher, networks.offsets
    if networks.lora is None:
        network = copy.deepcopy(teacher.network).float()
        weights = dict(network.named_parameters())
    else:
        network = teacher.network.shared.adapter(AVERAGE)
        weights = teacher.network.shared.parameters(AVERAGE)
    for name, parameter in networks.averaged.items():
        weights[name].copy_(parameter - offsets[name] if offsets else parameter)
    return teacher.with_network(network)


def require_same_weights(teacher: Denoiser, start: Denoiser) -> None:
    """Raise ValueError, with a clause about `start`, where it lacks a weight of the teacher or predicts something else."""
    shapes = {name: tensor.shape for name, tensor in start.network.named_parameters()}
    for name, tensor in teacher.network.named_parameters():
        if shapes.get(name) != tensor.shape:
            found = f"of shape {list(shapes[name])}" if name in shapes else "missing"
            raise ValueError(f"its weight {name} is {found}, and the teacher's is of shape {list(tensor.shape)}")
    if start.prediction_type != teacher.prediction_type:
        raise ValueError(f"it predicts {start.prediction_type}, and the teacher {teacher.prediction_type}")
