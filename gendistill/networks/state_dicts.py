"""Read and load weights from untrusted files without executing code in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt")
NESTS = (
    "g_ema",
    "generator_ema",
    "ema",
    "generator",
    "netG",
    "G",
    "discriminator",
    "netD",
    "D",
    "state_dict",
    "params",
    "model",
)
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
PICKLED = b"\x80"  # the first byte of a pickle
SAVE_INSTEAD = (
    "if you trust the file, save its weights as .safetensors: `from safetensors.torch import save_file` and "
    "`save_file(network.state_dict(), 'weights.safetensors')`"
)


def read_state_dict(path: str | Path, setting: str, *, part: str = "generator") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a state_dict in a `.pth` or `.pt` file, on the CPU.

    In a training checkpoint the nested state_dict is searched (`g_ema`, `generator`, `state_dict`, ...). The prefixes that
    DataParallel and torch.compile add to the names are removed.

    Args:
        setting: the name of the setting with this path, for error messages.
        part: `generator` or `discriminator`: the network to read where the file holds both.

    Raises:
        ValueError: the file holds no state_dict, or opening it would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{setting} {path}: there is no such file")
    refuse_program(path, setting)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{setting} {path}: expects .safetensors, or a state_dict's .pth or .pt; {SAVE_INSTEAD}")
    content = _read_safetensors(path, setting) if path.suffix.lower() == ".safetensors" else _read_pickle(path, setting)
    state = _state_dict_in(content, part)
    if state is None:
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{setting} {path}: holds no state_dict but {keys}; {SAVE_INSTEAD}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def refuse_program(path: Path, setting: str) -> None:
    """Raise ValueError if a file is a program: a torch.export `.pt2`, or an archive with TorchScript code."""
    if path.suffix.lower() != ".pt2":
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/constants.pkl") for name in archive.namelist()):  # only TorchScript writes it
                return
    raise ValueError(
        f"{setting} {path}: is a program (TorchScript or torch.export), and programs are not opened because they hold code; "
        f"expects module:Class as the teacher with .safetensors or a state_dict as generator.weights, or a GAN folder"
    )


def load_weights(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load `state` strictly into `network`, in the precision of the network.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or not finite; the message names the first one.
    """
    expected = network.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"the network has no {name}" for name in state if name not in expected]
    problems += [
        f"{name} has shape {list(state[name].shape)}; the network has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if isinstance(tensor, Tensor) and name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"{where}: does not fit {type(network).__name__} with these arguments: {problems[0]}{more}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{where}: {name} has values that are not finite")
    network.load_state_dict(state)


def _read_safetensors(path: Path, setting: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{setting} {path}: is not a complete safetensors file ({_first_line(error)})") from error


def _read_pickle(path: Path, setting: str) -> Any:
    """Unpickle tensors, numbers, strings and containers of these; torch refuses all other objects before it creates them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about the version of the pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None and path.read_bytes()[:1] != PICKLED:
            raise ValueError(f"{setting} {path}: is not a state_dict saved by torch; {SAVE_INSTEAD}") from error
        name = f" ({unsafe[1]})" if unsafe else ""
        raise ValueError(
            f"{setting} {path}: is a pickle that would run code when opened{name}, so it was not opened; {SAVE_INSTEAD}"
        ) from error
    except Exception as error:  # torch's readers raise many types
        raise ValueError(f"{setting} {path}: is not a complete state_dict saved by torch ({_first_line(error)})") from error


def _state_dict_in(content: Any, part: str) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()):
        return dict(content)
    other = "discriminator" if part == "generator" else "generator"
    avoided = ("netD", "D") if part == "generator" else ("netG", "G", "g_ema", "generator_ema", "ema")
    for name in NESTS:
        if name in content and name != other and name not in avoided:
            state = _state_dict_in(content[name], part)
            if state is not None:
                return state
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
