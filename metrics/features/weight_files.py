"""Reading weights from untrusted files, and hashes that identify weights."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

SUFFIXES = (".pth", ".pt", ".safetensors")


def weights_hash(path: Path) -> str:
    """The first 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """The first 16 hex digits of a SHA-256 over names, dtypes, shapes and values, independent of order and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file, on the CPU; a file with code is rejected, its code not run.

    Raises:
        ValueError: the file does not exist, or has contents other than named tensors.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES or not file.is_file():
        raise ValueError(f"weights: got {str(path)!r}, expects an existing file that ends in {', '.join(SUFFIXES)}.")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        first = str(error).split("\n", 1)[0]
        raise ValueError(f"weights: {file} cannot be read ({first}); expects only named tensors.") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"weights: {file} holds a {type(state).__name__}; expects only named tensors.")
    return dict(state)


def downloaded(url: str, description: str) -> Path:
    """The file at `url`, downloaded once into torch's hub folder.

    Raises:
        ValueError: the file cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:  # includes URLError, HTTPError and time-outs
            raise unreachable(description, url, error) from error
    return path


def unreachable(description: str, source: str, error: Exception) -> ValueError:
    """The error for weights that cannot be downloaded, without a network or because of a mistyped name."""
    reason = str(error).split("\n", 1)[0].rstrip(".")
    return ValueError(f"extractor: {description} cannot be downloaded from {source} ({reason}); expects a local path instead.")
