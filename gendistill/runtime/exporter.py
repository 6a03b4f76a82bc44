"""Export of networks as programs with torch's exporters, without their logs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import is_torch_version
from torch import Tensor, nn

LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")


@contextlib.contextmanager
def silent_exporters() -> Iterator[None]:
    """Silence progress, deprecation warnings, and logs of exceptions that the exporter also raises."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def traced(network: nn.Module, inputs: tuple[Tensor, ...], *, sizes: bool = False) -> torch.export.ExportedProgram:
    """The exported program of a network for any batch size; `inputs` (2, ...) are examples.

    Args:
        sizes: whether the height and the width of the first input (2, C, H, W) are dynamic too.

    Raises:
        Exception: any error of torch.export for this network.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes: list[dict[int, Any]] = [{0: dynamic} for _ in inputs]
    if sizes:
        shapes[0] |= {2: dynamic, 3: dynamic}
    with silent_exporters():
        return torch.export.export(network, inputs, dynamic_shapes=(tuple(shapes),))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as a product of matrices; torch 2.6 decomposes none of a dynamic batch without a bias."""
    rows = x.reshape(-1, x.shape[-1])
    product = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
    return product.reshape(*x.shape[:-1], weight.shape[0])


def write_onnx(
    file: Path,
    program: torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    *,
    external_data: bool,
) -> None:
    """Write a program as ONNX; `external_data` stores the weights in a separate file, which models above 2 GB need."""
    with silent_exporters():
        if is_torch_version("<", "2.7"):
            program = program.run_decompositions({torch.ops.aten.linear.default: _linear})
        written = torch.onnx.export(
            program, inputs, dynamo=True, optimize=True, verbose=False, input_names=input_names, output_names=output_names
        )
        assert written is not None  # torch.onnx.export returns None without dynamo alone
        for node in written.model.graph:
            for name, attribute in list(node.attributes.items()):
                value = getattr(attribute, "value", None)
                if isinstance(value, bool):  # onnxscript's ArgMax; protobuf 7 expects an int
                    node.attributes[name] = type(attribute)(name, attribute.type, int(value))
        written.save(str(file), external_data=external_data)
