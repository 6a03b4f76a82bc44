"""Packages that only some commands need, and the sentence with the command that installs a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# The extra of pyproject.toml that brings a package, by the name that the package is imported as.
EXTRAS = {
    "open_clip": "evaluate",
    "torchvision": "evaluate",
    "matplotlib": "evaluate",
    "scipy": "evaluate",
    "datasets": "data",
    "pyarrow": "data",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "gradio": "serve",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "optuna": "search",
    "sqlalchemy": "search",
    "lpips": "lpips",
    "codecarbon": "energy",
    "torchao": "torchao",
    "bitsandbytes": "eight-bit",
}


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message is one sentence with the line that installs it."""


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'gendistill[{extra}]'"


@contextmanager
def missing_extras_named() -> Iterator[None]:
    """A block, or as a decorator a function, in which the failed import of a package of an extra names the extra.

    Raises:
        MissingExtraError: such a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        sentence = f"{package} is not installed, and it is needed here: {install_line(EXTRAS[package])}"
        raise MissingExtraError(sentence, name=package) from error
