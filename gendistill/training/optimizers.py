"""Optimizers, and their state as named tensors, for safetensors and for any number of processes."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.runtime.extras import install_line
from gendistill.training.method import OptimizerSettings
from gendistill.training.sharding import full_tensor, sharded_like
from gendistill.training.trainer_config import TrainerConfig

Parameters = dict[str, nn.Parameter]


def build_optimizer(config: TrainerConfig, parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW over `parameters`, with a state of 32 or 8 bits; ValueError as `require_optimizer`."""
    require_optimizer(config)
    options: dict[str, Any] = {
        "lr": config.learning_rate * settings.learning_rate_factor,
        "betas": settings.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters.values()), **options)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(list(parameters.values()), **options)


def require_optimizer(config: TrainerConfig) -> None:
    """Raise ValueError where the 8-bit optimizer is requested and bitsandbytes is not installed."""
    if config.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(f"trainer.optimizer adamw_8bit needs bitsandbytes; {install_line('eight-bit')}")


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The optimizer state of each parameter by `PARAMETER.KEY`, as full tensors on every process; numbers become 0-d tensors.

    Settings of the config (learning rate, weight decay) are not part of it.
    """
    return {
        f"{name}.{key}": full_tensor(value) if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    by_parameter: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, tensor in tensors.items():
        name, _, key = path.rpartition(".")
        was_number = tensor.ndim == 0 and tensor.dtype == torch.int64
        by_parameter[name][key] = tensor.item() if was_number else sharded_like(parameters[name], tensor)
    state = {number: by_parameter[name] for number, name in enumerate(parameters) if name in by_parameter}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
