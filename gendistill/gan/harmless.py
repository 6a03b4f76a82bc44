"""Whether a program's file holds tensors and the operations of networks alone; it is looked into before torch opens it.

`torch.export.load` and `torch.jit.load` are made for files of friends. A `.pt2` may hold pickles and compiled libraries, its
operators are looked up by name in all of torch, its sizes are evaluated as Python, and so are its guards and the names of its
nodes. A TorchScript file is no Python, but may write files. Members are read by torch's own reader of archives, so that what
is looked at is what is opened.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gendistill.networks.classes import in_a_line

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

# What its sizes are written with, as sympy prints them.
SYMBOL = re.compile(r"(s|u|z|zf|zuf)\d+", re.ASCII)
FUNCTIONS = re.compile(
    "Symbol|Add|Mul|Pow|Integer|Rational|Float|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Where|Identity"
    "|IntTrueDiv|FloatTrueDiv|TruncToInt|CeilToInt|FloorToInt|ToFloat|TruncToFloat|Eq|Ne|Equality|Unequality|GreaterThan"
    "|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not"
)
CONSTANTS = {"true", "false", "oo", "int_oo"}

NAME = re.compile(r"[\w.+\-]*", re.ASCII)
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
IGNORED = ("metadata", "guards_code")  # never read by what follows: where the code stood, and checks that are not asked for
RECORDS = re.compile(  # what an archive of torch.export may hold
    r"models/[\w.\-]+\.json|data/(weights|constants)/((weight|tensor)_\d+|[\w.\-]+_config\.json|[\w.\-]+\.pt)"
    r"|data/sample_inputs/[\w.\-]+\.pt|extra/.*|archive_format|archive_version|version|byteorder|\.data/.*|\.format_version"
    r"|\.storage_alignment"
)


def check_script(path: Path, reader: Any, records: list[str]) -> None:
    """Of a TorchScript archive.

    Raises:
        ValueError: it holds anything else.
    """
    for record in records:
        if not record.endswith((".py", ".pkl")) or record.startswith("traced_inputs"):
            continue
        text = reader.get_record(record).decode("latin-1")
        found = NATIVE.search(text)
        if record.endswith(".py"):
            found = found or WRITING.search(text) or SCRIPT_OPERATIONS.search(text)
        if found:
            raise refused(path, f"calls {found[0]}")


def check_exported(path: Path, reader: Any, records: list[str]) -> None:
    """Of a torch.export archive.

    Raises:
        ValueError: it holds anything else, or is no whole archive.
    """
    if len({record.lower() for record in records}) < len(records):
        raise refused(path, "holds two members of one name")
    for record in records:
        if not RECORDS.fullmatch(record):
            raise refused(path, f"holds {record}")
        if record.endswith(".pt"):
            _check_pickle(path, record, reader.get_record(record))
        elif record.endswith(".json") and not record.startswith("extra/"):
            try:
                mistake = next(_hidden_code(json.loads(reader.get_record(record))), None)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise ValueError(f"program {path}: {record} is no JSON of a program ({in_a_line(error)})") from error
            if mistake is not None:
                raise refused(path, mistake)


def _check_pickle(path: Path, record: str, held: bytes) -> None:
    """torch would fall back to running it where it is no plain tensors."""
    if not held:
        return
    try:
        torch.load(io.BytesIO(held), weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise refused(path, f"{record} is a pickle of {unsafe[1] if unsafe else 'more than tensors'}") from error
    except Exception as error:  # torch's readers raise anything
        raise refused(path, f"{record} is no file of tensors") from error


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
            if key == "range_constraints":
                yield from _hidden_code_in_text(name, "expr_str")
            elif not NAME.fullmatch(name):
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
        if len(text) > 2000 or not _is_arithmetic(ast.parse(text, mode="eval").body):
            yield f"has the size {text[:60]}"
    elif key in ("in_spec", "out_spec", "treespec"):
        if text and not _is_plain(json.loads(text)):
            yield f"takes or gives {text[:60]}"
    elif key not in ("as_string", "as_strings") and not NAME.fullmatch(text):  # texts are quoted wherever they stand
        yield f"has the name {text[:60]!r}"


def _is_arithmetic(part: ast.expr | None, *, of_power: bool = False) -> bool:
    """Whether an expression is of numbers, symbols and functions of arithmetic alone.

    Powers have one digit and are of no other powers: 9**9**9 would never end.
    """
    if isinstance(part, ast.Constant):
        return isinstance(part.value, int | float) and abs(part.value) < 1e12
    if isinstance(part, ast.Name):
        return part.id in CONSTANTS or SYMBOL.fullmatch(part.id) is not None
    if isinstance(part, ast.UnaryOp):
        return isinstance(part.op, ast.USub) and _is_arithmetic(part.operand, of_power=of_power)
    if isinstance(part, ast.BinOp):
        if isinstance(part.op, ast.Pow):
            return not of_power and _is_digit(part.right) and _is_arithmetic(part.left, of_power=True)
        operators = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
        return isinstance(part.op, operators) and all(_is_arithmetic(of, of_power=of_power) for of in (part.left, part.right))
    if not (isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and FUNCTIONS.fullmatch(part.func.id)):
        return False
    if part.func.id == "Symbol":
        assumed = all(isinstance(each.value, ast.Constant) and isinstance(each.value.value, bool) for each in part.keywords)
        name = part.args[0].value if len(part.args) == 1 and isinstance(part.args[0], ast.Constant) else None
        return assumed and isinstance(name, str) and SYMBOL.fullmatch(name) is not None
    if part.keywords:
        return False
    if part.func.id == "Pow":
        return not of_power and len(part.args) == 2 and _is_digit(part.args[1]) and _is_arithmetic(part.args[0], of_power=True)
    return all(_is_arithmetic(of, of_power=of_power) for of in part.args)


def _is_digit(part: ast.expr) -> bool:
    return re.fullmatch(r"Integer\(-?\d\)|-?\d", ast.unparse(part)) is not None


def _is_plain(spec: Any) -> bool:
    """Whether a tree of inputs or outputs is of tuples, lists and dictionaries: others would import what they are of."""
    if isinstance(spec, list):
        return all(_is_plain(part) for part in spec)
    if isinstance(spec, dict):
        return spec.get("type") in CONTAINERS and _is_plain(spec.get("children_spec", []))
    return True


def refused(path: Path, why: str) -> ValueError:
    return ValueError(
        f"program {path}: {why}, which may run code when opened, so it was not; takes tensors and their operations alone, or "
        f"module:Class with its weights as .safetensors"
    )
