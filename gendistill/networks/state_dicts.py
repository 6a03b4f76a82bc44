"""Weights of a stranger: read without running anything that is in the file."""

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
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
PICKLED = b"\x80"  # the first byte of a pickle
SAVE_INSTEAD = (
    "where you trust it, save its weights as .safetensors: `from safetensors.torch import save_file` and "
    "`save_file(network.state_dict(), 'weights.safetensors')`"
)


def read_state_dict(path: str | Path, setting: str, *, part: str = "generator") -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, or of a state_dict in a `.pth` or `.pt`, on the CPU.

    A training checkpoint's nested state_dict is found (`g_ema`, `generator`, `state_dict`, ...), and the prefixes that
    DataParallel and torch.compile put before each name are taken away.

    Args:
        setting: that named the file, for the sentence.
        part: `generator` or `discriminator`, whose weights are taken where the file has those of both.

    Raises:
        ValueError: it is no such file, or it would run code when opened.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{setting} {path}: there is no such file")
    refuse_program(path, setting)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{setting} {path}: expects .safetensors, or a state_dict's .pth or .pt; {SAVE_INSTEAD}")
    held = _read_safetensors(path, setting) if path.suffix.lower() == ".safetensors" else _read_pickle(path, setting)
    found = _state_dict_in(held, part)
    if found is None:
        keys = ", ".join(map(str, list(held)[:4])) if isinstance(held, Mapping) else type(held).__name__
        raise ValueError(f"{setting} {path}: holds no state_dict but {keys}; {SAVE_INSTEAD}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def refuse_program(path: Path, setting: str) -> None:
    """Raise ValueError where a file is a program: a torch.export `.pt2`, or an archive with TorchScript's code in it."""
    if path.suffix.lower() != ".pt2":
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("/constants.pkl") for name in archive.namelist()):  # TorchScript's alone
                return
    raise ValueError(
        f"{setting} {path}: is a program (TorchScript or torch.export), and programs are not opened as they hold code; expects "
        f"module:Class as the teacher with .safetensors or a state_dict as generator.weights, or a GAN's folder"
    )


def load_weights(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put all of `state` into `network`, in the network's own precision.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or not finite; the sentence names the first.
    """
    own = network.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is none of the network's" for name in state if name not in own]
    problems += [
        f"{name} is {list(state[name].shape)} where the network has {list(of.shape)}"
        for name, of in own.items()
        if isinstance(of, Tensor) and name in state and state[name].shape != of.shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"{where}: does not fit {type(network).__name__} with these arguments: {problems[0]}{more}")
    broken = next((name for name, of in state.items() if of.is_floating_point() and not torch.isfinite(of.float()).all()), None)
    if broken is not None:
        raise ValueError(f"{where}: {broken} holds numbers that are not finite")
    network.load_state_dict(state)


def _read_safetensors(path: Path, setting: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{setting} {path}: is no whole safetensors file ({_first_line(error)})") from error


def _read_pickle(path: Path, setting: str) -> Any:
    """Tensors, numbers, texts and containers of these: whatever else a pickle could make is refused before it is made."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a pickle is of another version
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None and path.read_bytes()[:1] != PICKLED:
            raise ValueError(f"{setting} {path}: is no state_dict that torch saved; {SAVE_INSTEAD}") from error
        why = f" ({unsafe[1]})" if unsafe else ""
        raise ValueError(
            f"{setting} {path}: is a pickle that would run code when opened{why}, so it was not; {SAVE_INSTEAD}"
        ) from error
    except Exception as error:  # torch raises whatever its many readers raise
        raise ValueError(f"{setting} {path}: is no whole state_dict that torch saved ({_first_line(error)})") from error


def _state_dict_in(held: Any, part: str) -> dict[str, Tensor] | None:
    if not isinstance(held, Mapping) or not held:
        return None
    if all(isinstance(name, str) and isinstance(of, Tensor) for name, of in held.items()):
        return dict(held)
    other = "discriminator" if part == "generator" else "generator"
    avoided = ("netD", "D") if part == "generator" else ("netG", "G", "g_ema", "generator_ema", "ema")
    for name in NESTS:
        if name in held and name != other and name not in avoided:
            found = _state_dict_in(held[name], part)
            if found is not None:
                return found
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160].rstrip(".")
