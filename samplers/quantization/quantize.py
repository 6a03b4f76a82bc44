"""Quantization of a network for sampling, by name."""

from __future__ import annotations

from typing import Any

import torch

from gendistill.samplers.families import network_of
from gendistill.samplers.quantization.int8 import is_int8, to_int8
from gendistill.samplers.quantization.int8_torchao import is_by_torchao, require_torchao, to_int8_by_torchao
from gendistill.samplers.quantization.small_weights import KINDS, quantize_weights, weight_quantization
from gendistill.samplers.spec import StudentSpec

QUANTIZATIONS = ("none", "int8", *KINDS)


def quantize(pipeline: Any, kind: str, device: str | torch.device, *, lora: bool = False) -> None:
    """Quantize the denoiser of an opened pipeline: its computation to 8 bits, or its weights to 8 or 4 bits.

    Args:
        pipeline: a pipeline on the CPU.
        kind: one of `QUANTIZATIONS`: `int8` computes in 8 bits, by oneDNN on a CPU and by torchao on a GPU; the weights of
            `int8-weights` and `nf4-weights` need a half and a quarter of half precision's memory on any device; `none` does
            nothing.
        device: the device for sampling.
        lora: whether the pipeline has LoRA adapters, which are fused first.

    Raises:
        ValueError: this torch has no oneDNN, or torchao is not installed.
    """
    if kind == "none":
        return
    if lora:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    network = network_of(pipeline)
    if kind != "int8":
        quantize_weights(network, kind)
    elif torch.device(device).type == "cpu":
        to_int8(network)
    else:
        to_int8_by_torchao(network)


def quantization_in(pipeline: Any) -> str:
    """The quantization of a pipeline's denoiser, one of `QUANTIZATIONS`."""
    network = network_of(pipeline)
    if is_int8(network) or is_by_torchao(network):
        return "int8"
    return weight_quantization(network) or "none"


def quantization_of(spec: StudentSpec | None, device: str | torch.device) -> str:
    """The default quantization of a student: on a CPU `int8` if it was trained for it, otherwise `none`."""
    return spec.quantization if spec is not None and torch.device(device).type == "cpu" else "none"


def require_quantization(kind: str, device: str | torch.device) -> None:
    """Raise ValueError if the kind is unknown, or not supported on the device."""
    if kind not in QUANTIZATIONS:
        raise ValueError(f"quantization {kind}: expects one of {', '.join(QUANTIZATIONS)}")
    if kind == "int8" and (device_type := torch.device(device).type) != "cpu":
        if device_type != "cuda":
            raise ValueError(
                f"quantization int8: computes on a CPU or a CUDA GPU, not on {device_type}; expects int8-weights there"
            )
        require_torchao()
