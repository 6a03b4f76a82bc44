"""Checks of the machine: writable folders, usable devices and dtypes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from gendistill.runtime.files import require_text

DTYPES = ("float16", "bfloat16", "float32")


def make_folder(path: Path) -> Path:
    """Create the folder `path` if it does not exist; raises ValueError if it is not writable, or its name is not UTF-8."""
    require_text("out", path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except FileExistsError as error:
        raise ValueError(f"out {path} cannot be created as a folder: {error.strerror}") from error
    except OSError as error:
        raise ValueError(f"out {path} cannot be written to: {(error.strerror or str(error)).lower()}") from error
    return path


def usable_device(device: str | None) -> str:
    """`device`, or the best available device for None; raises ValueError if torch cannot use it."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used; expects cuda, mps or cpu") from error
    return device or best_device()


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on a device; the host does not wait for the end of a copy to a GPU (CUDA)."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def usable_dtype(dtype: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`; raises ValueError for other names."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}: expects one of {', '.join(DTYPES)}")
    torch_dtype: torch.dtype = getattr(torch, dtype)
    return torch_dtype


def best_device() -> str:
    """cuda, mps or cpu: the first of them that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
