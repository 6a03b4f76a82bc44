"""What a network's numbers may be kept or computed in, by name, for sampling."""

from __future__ import annotations

from typing import Any

import torch

from gendistill.samplers.families import network_of
from gendistill.samplers.quantization.int8 import is_int8, to_int8
from gendistill.samplers.quantization.int8_torchao import is_by_torchao, require_torchao, to_int8_by_torchao
from gendistill.samplers.quantization.small_weights import KINDS, keep_weights_small, kind_of_weights
from gendistill.samplers.spec import StudentSpec

QUANTIZATIONS = ("none", "int8", *KINDS)


def quantize(pipeline: Any, kind: str, device: str | torch.device, *, lora: bool = False) -> None:
    """Let the denoiser of an opened pipeline compute in 8 bits, or keep its weights in fewer.

    Args:
        pipeline: on the CPU.
        kind: one of `QUANTIZATIONS`: `int8` computes in 8 bits, by oneDNN on a CPU and by torchao on a GPU; `int8-weights` and
            `nf4-weights` take a half and a quarter of half precision's memory on any device; `none` does nothing.
        device: where it will sample.
        lora: whether it has adapters, which become part of the weights first.

    Raises:
        ValueError: this torch cannot, or torchao is not installed.
    """
    if kind == "none":
        return
    if lora:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    network = network_of(pipeline)
    if kind != "int8":
        keep_weights_small(network, kind)
    elif torch.device(device).type == "cpu":
        to_int8(network)
    else:
        to_int8_by_torchao(network)


def quantization_in(pipeline: Any) -> str:
    """Which of `QUANTIZATIONS` was done to the denoiser of a pipeline."""
    network = network_of(pipeline)
    if is_int8(network) or is_by_torchao(network):
        return "int8"
    return kind_of_weights(network) or "none"


def quantization_of(spec: StudentSpec | None, device: str | torch.device) -> str:
    """What a student learned to be sampled in, on a CPU: `int8` where it was trained for it."""
    return spec.quantization if spec is not None and torch.device(device).type == "cpu" else "none"


def require_quantization(kind: str, device: str | torch.device) -> None:
    """Raise ValueError where there is no such kind, or none on a device."""
    if kind not in QUANTIZATIONS:
        raise ValueError(f"quantization {kind}: expects one of {', '.join(QUANTIZATIONS)}")
    if kind == "int8" and (where := torch.device(device).type) != "cpu":
        if where != "cuda":
            raise ValueError(f"quantization int8: computes on a CPU or a CUDA GPU, not on {where}; expects int8-weights there")
        require_torchao()
