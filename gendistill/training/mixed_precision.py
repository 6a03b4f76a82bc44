"""Mixed precision: autocast of the forward passes, and the scale of losses whose gradients pass through float16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.amp import GradScaler

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # dtypes by trainer.mixed_precision
MIN_SCALE = 2.0**-10  # of a loss whose gradients overflow in every step; a scaler starts at 2^16


def autocast(mixed_precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of one forward pass; the backward pass and the optimizer step are outside of it.

    Weights are cast in each pass anew. A cache of them would keep the values from before an optimizer step, and casts of a pass
    without gradients, from which the next pass of the same network would get none (PyTorch before 2.7).
    """
    dtype = AUTOCAST.get(mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


def loss_scaler(mixed_precision: str, networks: Iterable[nn.Module], device: torch.device) -> GradScaler | None:
    """The scaler of losses (Micikevicius et al. 2018, section 3.2), without which small gradients are 0 in float16.

    It is needed where a forward pass computes in float16: under autocast, or in a network of a training step (`networks`) whose
    weights are float16, such as the frozen base of a LoRA.
    """
    in_float16 = any(parameter.dtype == torch.float16 for network in networks for parameter in network.parameters())
    return GradScaler(device.type) if mixed_precision == "fp16" or in_float16 else None


def require_scale(scaler: GradScaler, step: int) -> None:
    """Raise ValueError where gradients overflow at every scale of the loss, so that no optimizer steps any more."""
    if scaler.get_scale() < MIN_SCALE:
        raise ValueError(
            f"training stopped at step {step}: the gradients overflow float16 in every step, even with the loss scaled by "
            f"{scaler.get_scale():.1g}; the last checkpoint is kept. Expects trainer.mixed_precision=bf16, or a teacher in "
            "dtype bfloat16 or float32"
        )
