"""All tensors of a run by name: what learns, its average, and what the optimizers remember. Whole, whoever holds the shards."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.diffusion.sharding import sharded_like, whole
from gendistill.methods.base import Method
from gendistill.training.optimizers import load_optimizer_tensors, optimizer_tensors

Optimizers = dict[str, torch.optim.Optimizer]


def snapshot(method: Method, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights (`average.NAME`, `student.NAME`, ...) and optimizer states (`student.NAME.KEY`); all processes have to ask."""
    weights = {f"average.{name}": tensor for name, tensor in method.networks.average_state().items()}
    states: dict[str, Tensor] = {}
    for group, parameters in method.trained_parameters().items():
        weights |= {f"{group}.{name}": whole(parameter.detach()) for name, parameter in parameters.items()}
        states |= {f"{group}.{name}": tensor for name, tensor in optimizer_tensors(optimizers[group], parameters).items()}
    return weights, states


@torch.no_grad()
def restore(method: Method, optimizers: Optimizers, weights: dict[str, Tensor], states: dict[str, Tensor]) -> bool:
    """The inverse of `snapshot`. False, and nothing done, where these are another student's tensors."""
    groups = {"average": method.networks.averaged, **method.trained_parameters()}
    shapes = {f"{group}.{name}": parameter.shape for group, of in groups.items() for name, parameter in of.items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        return False
    for group, parameters in groups.items():
        for name, parameter in parameters.items():
            parameter.copy_(sharded_like(parameter, weights[f"{group}.{name}"]))
    for group, optimizer in optimizers.items():
        of_group = {name.removeprefix(f"{group}."): tensor for name, tensor in states.items() if name.startswith(f"{group}.")}
        load_optimizer_tensors(optimizer, method.trained_parameters()[group], of_group)
    return True
