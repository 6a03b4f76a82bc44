"""What a run needs of the machine: a folder that can be written to, a device that can be used."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

DTYPES = ("float16", "bfloat16", "float32")


def make_folder(path: Path) -> Path:
    """The folder `path`, made where it is not there; ValueError where nothing can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except FileExistsError as error:
        raise ValueError(f"out {path} cannot be made a folder: {error.strerror}") from error
    except OSError as error:
        raise ValueError(f"out {path} cannot be written to: {(error.strerror or str(error)).lower()}") from error
    return path


def usable_device(device: str | None) -> str:
    """`device`, or the best one that is there for None; ValueError where torch cannot use it."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used here; expects cuda, mps or cpu") from error
    return device or best_device()


def usable_dtype(dtype: str) -> torch.dtype:
    """What a name of `DTYPES` means."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}: expects one of {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
