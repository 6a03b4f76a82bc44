"""Optimizers, and their state as named tensors: what safetensors can hold, and what any number of processes can read."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.runtime.extras import install_line
from gendistill.training.method import OptimizerSettings
from gendistill.training.sharding import sharded_like, whole
from gendistill.training.trainer_config import TrainerConfig

Parameters = dict[str, nn.Parameter]


def build_optimizer(config: TrainerConfig, parameters: Parameters, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW over `parameters`, in 32 or 8 bits.

    Raises:
        ValueError: the 8-bit one is asked for and bitsandbytes is not installed.
    """
    options: dict[str, Any] = {
        "lr": config.learning_rate * settings.learning_rate_factor,
        "betas": settings.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters.values()), **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(f"trainer.optimizer adamw_8bit needs bitsandbytes; {install_line('eight-bit')}") from error
    return AdamW8bit(list(parameters.values()), **options)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """The state of each parameter by `PARAMETER.KEY`, whole on every process; a plain number becomes a 0-d tensor.

    What the config decides (learning rate, weight decay) is not part of it.
    """
    return {
        f"{name}.{key}": whole(value) if isinstance(value, Tensor) else torch.tensor(value)
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
