"""Tensors that FSDP has spread over the processes, and whole ones. Where nothing is spread, these functions do nothing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its shards; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, the same on every process, spread as a parameter of its shape is; as it is for another shape."""
    if not isinstance(parameter, DTensor) or parameter.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def owners(module: nn.Module) -> dict[nn.Parameter, tuple[nn.Module, str]]:
    """Each parameter's submodule and its name there, by which it is found again once FSDP has put another in its place."""
    return {
        parameter: (submodule, name)
        for submodule in module.modules()
        for name, parameter in submodule.named_parameters(recurse=False)
    }
