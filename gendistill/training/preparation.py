"""Optimizers of a method's trained parameters, and its modules wrapped for distributed training."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gendistill.configs import ACCELERATE
from gendistill.training.method import Method
from gendistill.training.optimizers import build_optimizer
from gendistill.training.processes import adds_up_gradients
from gendistill.training.sharding import owners
from gendistill.training.snapshot import Optimizers
from gendistill.training.trainer_config import TrainerConfig


def prepare(method: Method, config: TrainerConfig, accelerator: Accelerator) -> Optimizers:
    """The optimizers by name; the method's modules and parameters are replaced by those that accelerate returns.

    Raises:
        ValueError: the method does not support this kind of distributed training, the optimizer is not installed, a network
            does not support gradient checkpointing, or a parameter cannot be trained.
    """
    kind = accelerator.distributed_type
    unsharded = method.networks.lora is not None or not method.shards
    if kind == DistributedType.DEEPSPEED or (kind == DistributedType.FSDP and (unsharded or not accelerator.is_fsdp2)):
        raise ValueError(
            f"accelerate's {kind.value.lower()} cannot train this method; expects DDP (--config_file {ACCELERATE['ddp']}), or, "
            f"for all weights of diffusion models, FSDP of version 2 (--config_file {ACCELERATE['fsdp']})"
        )
    if kind == DistributedType.FSDP and config.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(config.mixed_precision)
    optimizers: Optimizers = {}
    wrapped, trained = {}, method.trained_parameters()
    if config.gradient_checkpointing:
        checkpoint_gradients(method.trained_modules())
    for name, module in method.trained_modules().items():
        settings = method.optimizer_settings(name)
        module.requires_grad_(False)  # DDP wraps all parameters that require gradients: none of other adapters on a shared base
        _require_grad(trained[name])
        owner_of = owners(module)
        optimizer = build_optimizer(config, trained[name], settings)
        wrapped[name], optimizers[name] = accelerator.prepare(module, optimizer)
        optimizers[name].scaler = None  # type: ignore[attr-defined]  # the step scales the losses itself
        if isinstance(wrapped[name], DistributedDataParallel):
            wrapped[name].require_backward_grad_sync = not adds_up_gradients(config, accelerator)
            if hasattr(module, "config"):
                wrapped[name].config = module.config  # the denoiser reads it
        for path, parameter in trained[name].items():
            submodule, leaf = owner_of[parameter]
            trained[name][path] = getattr(submodule, leaf)  # FSDP has replaced it by a sharded parameter
    method.replace_modules(wrapped)
    for name, parameters in trained.items():
        _require_grad(parameters)  # a module that was wrapped later may have the same base
        require_trainable(name, parameters)
    return optimizers


def _require_grad(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.requires_grad_(True)


def require_trainable(optimizer: str, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a parameter of an optimizer no longer requires gradients."""
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"optimizer {optimizer}: {len(frozen)} of its {len(parameters)} parameters do not require gradients and cannot "
            f"be trained, such as {', '.join(frozen[:3])}"
        )


def require_gradients(optimizer: str, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a backward pass gave no gradient to any parameter of an optimizer.

    Single parameters may have none: not every loss reaches every branch of a network.
    """
    if all(parameter.grad is None for parameter in parameters.values()):
        raise ValueError(
            f"optimizer {optimizer}: none of its {len(parameters)} parameters got a gradient from its loss, such as "
            f"{', '.join(list(parameters)[:3])}"
        )


def checkpoint_gradients(modules: dict[str, nn.Module]) -> None:
    """Enable gradient checkpointing in all modules that support it; ValueError where none does."""
    bases: dict[str, Any] = {name: getattr(module, "base", module) for name, module in modules.items()}
    supporting = [name for name, base in bases.items() if getattr(base, "_supports_gradient_checkpointing", False)]
    if not supporting:
        kinds = ", ".join(f"the {name} ({type(base).__name__})" for name, base in bases.items())
        raise ValueError(f"trainer.gradient_checkpointing: {kinds} does not support it; expects false")
    for name in supporting:
        module: Any = modules[name]
        module.enable_gradient_checkpointing()
