"""All tensors of a run by name: trained parameters, EMA weights, buffers and optimizer states, as full tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from gendistill.training.method import Method
from gendistill.training.optimizers import load_optimizer_tensors, optimizer_tensors
from gendistill.training.sharding import full_tensor, sharded_like

Optimizers = dict[str, torch.optim.Optimizer]


def snapshot(method: Method, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights (`average.NAME`, `buffer.NAME`, `student.NAME`, ...) and optimizer states (`student.NAME.KEY`).

    A collective call of all processes.
    """
    weights = {f"average.{name}": tensor for name, tensor in method.networks.average_state().items()}
    weights |= {f"buffer.{name}": tensor.detach() for name, tensor in _buffers(method).items()}
    states: dict[str, Tensor] = {}
    for group, parameters in method.trained_parameters().items():
        weights |= {f"{group}.{name}": full_tensor(parameter.detach()) for name, parameter in parameters.items()}
        states |= {f"{group}.{name}": tensor for name, tensor in optimizer_tensors(optimizers[group], parameters).items()}
    return weights, states


def _buffers(method: Method) -> dict[str, Tensor]:
    """Buffers of the trained modules, and the EMA weights of all networks but the student."""
    other_averages = {name: average for name, average in method.averages.items() if average is not method.networks}
    return method.buffers() | {
        f"{name}_average.{path}": tensor
        for name, average in other_averages.items()
        for path, tensor in average.average_tensors().items()
    }


@torch.no_grad()
def restore(method: Method, optimizers: Optimizers, weights: dict[str, Tensor], states: dict[str, Tensor]) -> bool:
    """The inverse of `snapshot`. Returns False, without changes, where names or shapes differ from those of the method."""
    groups: dict[str, dict[str, Tensor]] = {"average": method.networks.average_tensors(), "buffer": _buffers(method)}
    groups |= {name: dict(parameters) for name, parameters in method.trained_parameters().items()}
    shapes = {f"{group}.{name}": tensor.shape for group, tensors in groups.items() for name, tensor in tensors.items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        return False
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            tensor.copy_(sharded_like(tensor, weights[f"{group}.{name}"]))
    for group, optimizer in optimizers.items():
        prefix = f"{group}."
        state = {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}
        load_optimizer_tensors(optimizer, method.trained_parameters()[group], state)
    return True
