"""Tensors that FSDP has sharded over the processes, and full tensors. Without sharding these functions do nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from its shards; a collective call of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor, equal on every process, sharded like a parameter of its shape; unchanged where the shapes differ."""
    if not isinstance(parameter, DTensor) or parameter.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def owners(module: nn.Module) -> dict[nn.Parameter, tuple[nn.Module, str]]:
    """The submodule and the attribute name of each parameter, to find the parameter by which FSDP replaces it."""
    return {
        parameter: (submodule, name)
        for submodule in module.modules()
        for name, parameter in submodule.named_parameters(recurse=False)
    }
