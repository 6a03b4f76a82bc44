"""Programs: TorchScript (`.pt`) and torch.export (`.pt2`), opened without running anything that is not a tensor operation.

`torch.export.load` and `torch.jit.load` are made for files of friends. A `.pt2` may hold pickles and compiled libraries, its
operators are looked up by name in all of torch, its sizes are evaluated as Python, and so are its guards and the names of its
nodes. A TorchScript file is no Python, but may write files. So each file is read first, by torch's own reader of archives, and
is refused unless it holds tensors and the operations of networks alone.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.gan.classes import in_a_line

SUFFIXES = (".pt", ".pt2")

# What a program may call. Python's operators are those of arithmetic: `operator.attrgetter` would reach everything.
ARITHMETIC = (
    "getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|iadd|isub|imul|itruediv|ifloordiv"
)
OPERATIONS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    rf"|_operator\.({ARITHMETIC})|math\.(floor|ceil|trunc|sqrt)|torch\.sym_(int|float|max|min|not|sqrt|sum)"
)
WRITING = re.compile(r"\b(save|from_file|unsafe_\w*from_file)\b")  # operations of aten that touch files
NATIVE = re.compile(r"torch\s*\.\s*classes")  # objects of C++, which do what they like
SCRIPT_OPERATIONS = re.compile(r"\bops\s*\.\s*(?!(?:prim|aten|torchvision)\b)(\w+)")

# What its sizes are written with, as sympy prints them. No powers: 9**9**9 would never end.
SYMBOL = re.compile(r"Symbol\('(s|u|z|zf|zuf)\d+'(, \w+=(True|False))*\)")
FUNCTIONS = (
    "Add|Mul|Integer|Rational|Float|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Where|IntTrueDiv|FloatTrueDiv"
    "|TruncToInt|CeilToInt|FloorToInt|ToFloat|TruncToFloat|Identity|Eq|Ne|Equality|Unequality|GreaterThan|LessThan"
    "|StrictGreaterThan|StrictLessThan|And|Or|Not|true|false|True|False|symbol"
)
EXPRESSION = re.compile(rf"(\b({FUNCTIONS})\b|\b\d{{1,12}}(\.\d{{1,12}})?\b|[-+/(), <>=!&|~]|(?<!\*)\*(?!\*))*")

NAME = re.compile(r"[\w.+\-]*", re.ASCII)
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
IGNORED = ("metadata", "guards_code")  # never read by what follows: where the code stood, and checks that are not asked for
RECORDS = re.compile(  # what an archive of torch.export may hold
    r"models/[\w.\-]+\.json|data/(weights|constants)/((weight|tensor)_\d+|[\w.\-]+_config\.json|[\w.\-]+\.pt)"
    r"|data/sample_inputs/[\w.\-]+\.pt|extra/.*|archive_format|archive_version|version|byteorder|\.data/.*|\.format_version"
    r"|\.storage_alignment"
)


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
    for record in records:
        if not record.endswith((".py", ".pkl")) or record.startswith("traced_inputs"):
            continue
        text = reader.get_record(record).decode("latin-1")
        found = NATIVE.search(text)
        if record.endswith(".py"):
            found = found or WRITING.search(text) or SCRIPT_OPERATIONS.search(text)
        if found:
            raise _refused(path, f"calls {found[0]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
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
    _check_exported(path, reader, records)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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


def _check_exported(path: Path, reader: Any, records: list[str]) -> None:
    if len({record.lower() for record in records}) < len(records):
        raise _refused(path, "holds two members of one name")
    for record in records:
        if not RECORDS.fullmatch(record):
            raise _refused(path, f"holds {record}")
        if record.endswith(".pt"):
            _check_pickle(path, record, reader.get_record(record))
        elif record.endswith(".json") and not record.startswith("extra/"):
            try:
                mistake = next(_hidden_code(json.loads(reader.get_record(record))), None)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"program {path}: {record} is no JSON of a program ({in_a_line(error)})") from error
            if mistake is not None:
                raise _refused(path, mistake)


def _check_pickle(path: Path, record: str, held: bytes) -> None:
    """torch would fall back to running it where it is no plain tensors."""
    if not held:
        return
    try:
        torch.load(io.BytesIO(held), weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _refused(path, f"{record} is a pickle of {unsafe[1] if unsafe else 'more than tensors'}") from error
    except Exception as error:  # torch's readers raise anything
        raise _refused(path, f"{record} is no file of tensors") from error


def _hidden_code(held: Any, key: str = "") -> Iterator[str]:
    """What in the JSON of a program would be more than a graph of tensor operations."""
    if isinstance(held, dict):
        for name, value in held.items():
            if name in IGNORED:
                continue
            if name in ("as_custom_obj", "as_operator"):
                yield f"holds {name}"
            if name == "use_pickle" and value:
                yield "holds pickled weights"
            if name == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                yield f"holds {value}"
            if not NAME.fullmatch(name):
                yield f"has the name {name[:60]!r}"
            yield from _hidden_code(value, name)
    elif isinstance(held, list):
        for value in held:
            yield from _hidden_code(value, key)
    elif isinstance(held, str):
        yield from _hidden_code_in_text(held, key)


def _hidden_code_in_text(text: str, key: str) -> Iterator[str]:
    if key == "target":
        if not OPERATIONS.fullmatch(text) or WRITING.search(text.replace(".", " ")):
            yield f"calls {text[:60]}"
    elif key == "expr_str":
        if len(text) > 1000 or not EXPRESSION.fullmatch(SYMBOL.sub("symbol", text)):
            yield f"has the size {text[:60]}"
    elif key in ("in_spec", "out_spec", "treespec"):
        if text and not _is_plain(json.loads(text)):
            yield f"takes or gives {text[:60]}"
    elif key not in ("as_string", "as_strings") and not NAME.fullmatch(text):  # texts are quoted wherever they stand
        yield f"has the name {text[:60]!r}"


def _is_plain(spec: Any) -> bool:
    """Whether a tree of inputs or outputs is of tuples, lists and dictionaries: others would import what they are of."""
    if isinstance(spec, list):
        return all(_is_plain(part) for part in spec)
    if isinstance(spec, dict):
        return spec.get("type") in CONTAINERS and _is_plain(spec.get("children_spec", []))
    return True


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(
        f"program {path}: {why}, which may run code when opened, so it was not; takes tensors and their operations alone, or "
        f"module:Class with its weights as .safetensors"
    )
