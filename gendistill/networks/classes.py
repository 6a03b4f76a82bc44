"""Import a network's class by its name and build it from the constructor arguments of a JSON file."""

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
    """Whether the text has the form `module:Class`."""
    return CLASS_PATH.fullmatch(text) is not None


class NotImportable(ValueError):
    """The module cannot be found."""


def network_class(class_path: str, setting: str = "teacher") -> type[nn.Module]:
    """The class `module:Class` from the working directory (as with `python -m`) or from an installed package.

    Raises:
        NotImportable: the module cannot be found.
        ValueError: the import fails, the module has no such class, or the class is not a torch.nn.Module.
    """
    if not is_class_path(class_path):
        raise ValueError(f"{setting} {class_path}: expects module:Class, such as networks.generator:Generator")
    module_name, _, name = class_path.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        imported: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise NotImportable(
                f"{setting} {class_path}: the module {module_name} is not importable, neither from the working directory "
                f"nor installed"
            ) from error
        raise ValueError(f"{setting} {class_path}: {module_name} needs {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # foreign code may raise anything; a script may exit
        raise ValueError(f"{setting} {class_path}: {module_name} fails when imported: {error_summary(error)}") from error
    for part in name.split("."):
        if not hasattr(imported, part):
            classes = [key for key, value in vars(imported).items() if isinstance(value, type) and issubclass(value, nn.Module)]
            near = difflib.get_close_matches(part, classes, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(classes[:5])}" if classes else ""
            raise ValueError(f"{setting} {class_path}: {module_name} has no class {part}{hint}")
        imported = getattr(imported, part)
    if not (isinstance(imported, type) and issubclass(imported, nn.Module)):
        raise ValueError(f"{setting} {class_path}: is not a subclass of torch.nn.Module")
    return imported


def build(class_path: str, arguments: dict[str, Any], setting: str = "teacher") -> nn.Module:
    """A network of this class in float32 on the CPU, in eval mode.

    Raises:
        ValueError: see `network_class`; or the constructor rejects the arguments.
    """
    cls = network_class(class_path, setting)
    try:
        network: nn.Module = cls(**arguments)
    except Exception as error:  # a foreign constructor may raise anything
        listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(f"{setting} {class_path}: cannot be built with ({listed}): {error_summary(error)}") from error
    return network.float().eval()


def read_arguments(path: str | None, setting: str) -> dict[str, Any]:
    """Constructor arguments from a JSON file; an empty dict where `path` is None. Keys with a leading underscore, which
    diffusers writes (`_class_name`), are left out.

    Raises:
        ValueError: the file does not exist or does not hold a JSON object.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ValueError(f"{setting} {path}: expects a JSON file with the constructor's arguments; there is no such file")
    return {name: value for name, value in read_json(Path(path), setting).items() if not name.startswith("_")}


def read_json(path: Path, setting: str) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ValueError: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{setting} {path}: is not a JSON file ({error_summary(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f'{setting} {path}: expects a mapping such as {{"latent_dim": 128}}, not {type(content).__name__}')
    return content


def error_summary(error: BaseException) -> str:
    """The type of an error and the first line of its message, at most 200 characters of it."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message[:200]}".rstrip(".: ") if message else type(error).__name__
