"""Programs: TorchScript (`.pt`) and torch.export (`.pt2`), opened once they are known to be tensor operations alone."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.gan.harmless import check_exported, check_script
from gendistill.networks.classes import in_a_line

SUFFIXES = (".pt", ".pt2")


class Program(nn.Module):
    """A program as a network: called like one, it has no layers and no training mode.

    Attributes:
        inputs: (shape of one sample, dtype) of each input, where the program says so.
        num_classes: rows of its table of classes, where one can be seen; else 0.
        batch: the only batch size that it takes, or None where it takes any.
        layers: (what the layer is, how many numbers or channels go in), where the program says so.
    """

    def __init__(self, program: nn.Module, inputs: list[tuple[tuple[int, ...], torch.dtype]] | None = None) -> None:
        super().__init__()
        self.program, self.inputs = program, inputs
        self.num_classes, self.num_inputs = 0, len(inputs) if inputs else 1
        self.batch: int | None = None
        self.layers: list[tuple[str, int]] = []

    def forward(self, *inputs: Tensor) -> Any:
        return self.program(*inputs)

    def train(self, mode: bool = True) -> Program:
        """Nothing: it was saved as it is to be run."""
        return self


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters and loaders tell of their progress, of what is old, and of what they raise anyway."""
    before = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def open_program(path: str | Path, device: str | torch.device = "cpu") -> Program:
    """A TorchScript `.pt` or torch.export `.pt2` program, called as its network was.

    Raises:
        ValueError: it is none, or it holds what is no tensor operation.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"program {path}: there is no such file")
    data = path.read_bytes()  # once: what is opened is what was looked at
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))
        records = reader.get_all_records()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"program {path}: is no program of TorchScript or torch.export ({in_a_line(error)})") from error
    if sum(reader.get_record_size(record) for record in records) > 2 * len(data) + 2**26:
        raise ValueError(f"program {path}: is packed so that it would fill the memory")
    if any(record.startswith("models/") for record in records):
        return _open_exported(path, data, reader, records, device)
    if "constants.pkl" in records and any(record.startswith("code/") for record in records):
        return _open_script(path, data, reader, records, device)
    if "data.pkl" in records:
        raise ValueError(
            f"program {path}: is no program but a state_dict or a pickle; takes module:Class with it as generator.weights"
        )
    raise ValueError(f"program {path}: is no program of TorchScript or torch.export, or of a torch before 2.8")


def _open_script(path: Path, data: bytes, reader: Any, records: list[str], device: str | torch.device) -> Program:
    check_script(path, reader, records)
    try:
        with quiet():
            script = torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except Exception as error:  # torch's parser raises whatever it stumbles over
        raise ValueError(f"program {path}: TorchScript cannot open it ({in_a_line(error)})") from error
    if not hasattr(script, "forward"):
        raise ValueError(f"program {path}: has no forward")
    program = Program(script)
    program.num_inputs = len(script.forward.schema.arguments) - 1
    for module in script.modules():
        kind, weight = module.original_name, getattr(module, "weight", None)
        if kind == "Embedding" and isinstance(weight, Tensor):
            program.num_classes = program.num_classes or weight.shape[0]
        elif kind in ("Linear", "Conv2d", "ConvTranspose2d") and isinstance(weight, Tensor):
            program.layers.append((kind, weight.shape[0 if kind == "ConvTranspose2d" else 1]))
    return program.requires_grad_(False)


def _open_exported(path: Path, data: bytes, reader: Any, records: list[str], device: str | torch.device) -> Program:
    check_exported(path, reader, records)
    try:
        with quiet():
            exported = torch.export.load(io.BytesIO(data))
            if torch.device(device).type != "cpu":
                from torch.export.passes import move_to_device_pass  # of torch from 2.7

                exported = move_to_device_pass(exported, torch.device(device))
            program = Program(_module_of(exported), _inputs_of(exported))
    except Exception as error:  # of a file that is broken within
        raise ValueError(f"program {path}: torch.export cannot open it ({in_a_line(error)})") from error
    batches = [node.meta["val"].shape[0] for node in _user_inputs(exported) if node.meta["val"].ndim]
    program.batch = next((size for size in batches if isinstance(size, int)), None)
    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.embedding.default:
            program.num_classes = int(node.args[0].meta["val"].shape[0])
    return program.requires_grad_(False)


def _module_of(exported: torch.export.ExportedProgram) -> nn.Module:
    """Without its guards, which are Python code in the file."""
    try:
        return exported.module(check_guards=False)
    except TypeError:  # torch before 2.9 knows none
        return exported.module()


def _user_inputs(exported: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    names = set(exported.graph_signature.user_inputs)
    return [
        node
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor)
    ]


def _inputs_of(exported: torch.export.ExportedProgram) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Of one sample; sizes that may be any are 0."""
    values = [node.meta["val"] for node in _user_inputs(exported)]
    return [(tuple(size if isinstance(size, int) else 0 for size in of.shape[1:]), of.dtype) for of in values]
