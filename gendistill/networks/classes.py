"""A network's class by name, and what it is built with."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_class_path(text: str) -> bool:
    """Whether it reads as `module:Class`."""
    return CLASS_PATH.fullmatch(text) is not None


class NotImportable(ValueError):
    """There is no such module here."""


def network_class(class_path: str, setting: str = "teacher") -> type[nn.Module]:
    """The class `module:Class`, importable from the working directory, as with `python -m`, or installed.

    Raises:
        NotImportable: there is no such module.
        ValueError: the module fails, or has no such class, or it is no torch.nn.Module.
    """
    if not is_class_path(class_path):
        raise ValueError(f"{setting} {class_path}: expects module:Class, such as networks.generator:Generator")
    module_name, _, name = class_path.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise NotImportable(
                f"{setting} {class_path}: the module {module_name} is not importable, neither from the working directory "
                f"nor installed"
            ) from error
        raise ValueError(f"{setting} {class_path}: {module_name} needs {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything, a script of theirs reads arguments
        raise ValueError(f"{setting} {class_path}: {module_name} fails when imported: {in_a_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            classes = [each for each, of in vars(found).items() if isinstance(of, type) and issubclass(of, nn.Module)]
            near = difflib.get_close_matches(part, classes, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(classes[:5])}" if classes else ""
            raise ValueError(f"{setting} {class_path}: {module_name} has no class {part}{hint}")
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{setting} {class_path}: is no class of torch.nn.Module")
    return found


def build(class_path: str, arguments: dict[str, Any], setting: str = "teacher") -> nn.Module:
    """A network of that class, in float32 on the CPU, ready to evaluate.

    Raises:
        ValueError: as `network_class`, or its constructor refuses the arguments.
    """
    made = network_class(class_path, setting)
    try:
        network: nn.Module = made(**arguments)
    except Exception as error:  # of a stranger's constructor
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(f"{setting} {class_path}: cannot be built with ({given}): {in_a_line(error)}") from error
    return network.float().eval()


def read_arguments(path: str | None, setting: str) -> dict[str, Any]:
    """The constructor's arguments in a JSON file; none without one. diffusers' own entries (`_class_name`) are left out.

    Raises:
        ValueError: it is no JSON file with a mapping.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"{setting} {path}: expects a JSON file with the constructor's arguments; there is no such file")
    return {name: value for name, value in read_json(Path(path), setting).items() if not name.startswith("_")}


def read_json(path: Path, setting: str) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        ValueError: it does not.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{setting} {path}: is no JSON file ({in_a_line(error)})") from error
    if not isinstance(read, dict):
        raise ValueError(f'{setting} {path}: expects a mapping such as {{"latent_dim": 128}}, not {type(read).__name__}')
    return read


def in_a_line(error: BaseException) -> str:
    """The first line of what went wrong, with its kind where it says little alone."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said[:200]}".rstrip(".: ") if said else type(error).__name__
