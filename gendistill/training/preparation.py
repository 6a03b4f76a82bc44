"""Optimizers over what a method trains, and its modules wrapped for however many processes there are."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gendistill.training.method import Method
from gendistill.training.optimizers import build_optimizer
from gendistill.training.sharding import owners
from gendistill.training.snapshot import Optimizers
from gendistill.training.trainer_config import TrainerConfig


def prepare(method: Method, config: TrainerConfig, accelerator: Accelerator) -> Optimizers:
    """The optimizers by name; the method's modules and parameters are those that accelerate gives back from now on.

    Raises:
        ValueError: the processes were started in a way that this cannot be trained in, the optimizer is not installed, a
            network knows no gradient checkpointing, or a parameter cannot learn.
    """
    kind, several = accelerator.distributed_type, len(method.trained_modules()) > 1
    unshared = method.networks.lora is not None or not method.networks.shards or several
    if kind == DistributedType.DEEPSPEED or (kind == DistributedType.FSDP and (unshared or not accelerator.is_fsdp2)):
        raise ValueError(
            f"accelerate's {kind.value.lower()} cannot train this; expects DDP (configs/accelerate/ddp.yaml), or for all "
            "weights of one diffusion model FSDP of version 2 (configs/accelerate/fsdp.yaml)"
        )
    optimizers: Optimizers = {}
    wrapped, trained = {}, method.trained_parameters()
    if config.gradient_checkpointing:
        checkpoint_gradients(method.trained_modules())
    for name, module in method.trained_modules().items():
        settings = method.optimizer_settings(name)
        module.requires_grad_(False)  # DDP looks at what learns when it wraps: no other adapter of a shared base
        _let_learn(trained[name])
        places = owners(module)
        optimizer = build_optimizer(config, trained[name], settings)
        wrapped[name], optimizers[name] = accelerator.prepare(module, optimizer)
        if isinstance(wrapped[name], DistributedDataParallel) and hasattr(module, "config"):
            wrapped[name].config = module.config  # which a denoiser reads
        for path, parameter in trained[name].items():
            submodule, leaf = places[parameter]
            trained[name][path] = getattr(submodule, leaf)  # FSDP has put a sharded one in its place
    method.replace_modules(wrapped)
    for name, parameters in trained.items():
        _let_learn(parameters)  # a module wrapped later may have the same base
        require_trainable(name, parameters)
    return optimizers


def _let_learn(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.requires_grad_(True)


def require_trainable(optimizer: str, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a parameter of an optimizer no longer requires gradients."""
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(
            f"optimizer {optimizer}: {len(frozen)} of its {len(parameters)} parameters do not require gradients and cannot "
            f"learn, such as {', '.join(frozen[:3])}"
        )


def require_gradients(optimizer: str, parameters: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a backward pass reached no parameter of an optimizer.

    Some may be without a gradient: not every loss reaches every branch of a network.
    """
    if all(parameter.grad is None for parameter in parameters.values()):
        raise ValueError(
            f"optimizer {optimizer}: none of its {len(parameters)} parameters got a gradient from its loss, such as "
            f"{', '.join(list(parameters)[:3])}"
        )


def checkpoint_gradients(modules: dict[str, nn.Module]) -> None:
    """Recompute activations in the backward pass, in all modules that know how; ValueError where none does."""
    bases: dict[str, Any] = {name: getattr(module, "base", module) for name, module in modules.items()}
    able = [name for name, base in bases.items() if getattr(base, "_supports_gradient_checkpointing", False)]
    if not able:
        kinds = ", ".join(f"the {name} ({type(base).__name__})" for name, base in bases.items())
        raise ValueError(f"trainer.gradient_checkpointing: {kinds} has none; expects false")
    for name in able:
        module: Any = modules[name]
        module.enable_gradient_checkpointing()
