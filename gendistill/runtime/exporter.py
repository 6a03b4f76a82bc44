"""Networks as programs, by torch's exporters, whose logs are silenced."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")


@contextlib.contextmanager
def silent_exporters() -> Iterator[None]:
    """No progress, no deprecation warnings, and no log of an exception that the exporter raises as well."""
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


def traced(network: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program of a network for any batch size; inputs (2, ...) are examples.

    Raises:
        Exception: whatever the network makes torch.export stumble over.
    """
    batch = getattr(torch.export.Dim, "DYNAMIC", None) or torch.export.Dim("batch")  # torch before 2.6 knows names alone
    with silent_exporters():
        return torch.export.export(network, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))


def write_onnx(
    file: Path,
    program: torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    *,
    external_data: bool,
) -> None:
    """A program as ONNX; with `external_data` the weights are in a file beside it, which those above 2 GB need."""
    with silent_exporters():
        torch.onnx.export(
            program,
            inputs,
            str(file),
            dynamo=True,
            external_data=external_data,
            verbose=False,
            input_names=input_names,
            output_names=output_names,
        )
