"""LPIPS: how different two pictures look, by a network that was trained to see objects (Zhang et al. 2018)."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gendistill.metrics.features.weight_files import weights_hash

# ImageNet's mean and standard deviation, for pictures in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision: its builder's name, the file that torchvision downloads, where features are taken (after
    so many layers of `features`), their channels, and the least edge of a picture that reaches the last of them."""

    builder: str
    file: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    least: int


BACKBONES = {
    "alex": Backbone("alexnet", "alexnet-owt-7be5be79.pth", (2, 5, 8, 10, 12), (64, 192, 384, 256, 256), 31),
    "vgg": Backbone("vgg16", "vgg16-397923af.pth", (4, 9, 16, 23, 30), (64, 128, 256, 512, 512), 16),
    "squeeze": Backbone(
        "squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", (2, 5, 8, 10, 11, 12, 13), (64, 128, 256, 384, 384, 512, 512), 17
    ),
}


class Lpips(nn.Module):
    """The distance of Zhang et al. 2018, eq. 1, version 0.1 of their weights: lower is nearer, 0 for equal pictures.

    Features of several layers, each of unit length at every place; their squared differences, weighted a channel by the
    heads, which were learned from what people saw; averaged over places and summed over layers.

    Attributes:
        name: "lpips-alex", "lpips-vgg" or "lpips-squeeze": three different measures.
        weights_hash: of the backbone's file, 16 hex digits; "" where it was not read from a file.
    """

    def __init__(self, network: str, layers: nn.Sequential, heads: list[Tensor], weights_hash: str = "") -> None:
        """`layers`: torchvision's `features`; `heads`: the weights (channels,) of each layer, none negative."""
        super().__init__()
        self.name, self.backbone, self.weights_hash = f"lpips-{network}", BACKBONES[network], weights_hash
        self.layers = layers[: self.backbone.taps[-1]].eval().requires_grad_(False)
        for k, head in enumerate(heads):
            self.register_buffer(f"head_{k}", head.detach().float().view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    @torch.inference_mode()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances float32 (N,) of pictures (N, 3, H, W), float in [-1, 1].

        Raises:
            ValueError: a picture is smaller than the network takes.
        """
        least = self.backbone.least
        if min(a.shape[-2:]) < least:
            raise ValueError(f"pictures: got {a.shape[-1]}x{a.shape[-2]}, {self.name} takes at least {least}x{least}.")
        distance = torch.zeros(len(a), device=a.device)
        for k, (of_a, of_b) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (of_a - of_b).square() * self.get_buffer(f"head_{k}")
            distance += difference.sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, pictures: Tensor) -> list[Tensor]:
        x, found = (pictures - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for count, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if count in self.backbone.taps:
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


def load_lpips(
    network: str = "alex",
    *,
    weights: str | Path | None = None,
    heads: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Lpips:
    """LPIPS of weights that are on this machine.

    Args:
        network: "alex" (as most papers report), "vgg" or "squeeze".
        weights: the backbone's file, `.pth` of tensors alone or `.safetensors`, with torchvision's names; None takes the one
            that torchvision keeps after a download.
        heads: the learned heads' file; None takes those that torchmetrics, or the package lpips, comes with.
        download: whether torchvision may fetch the backbone where it is not there.

    Raises:
        ValueError: there are no weights and none may be fetched, or a file holds something else.
    """
    if network not in BACKBONES:
        raise ValueError(f"network: got {network!r}, takes one of {', '.join(BACKBONES)}.")
    backbone = BACKBONES[network]
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / backbone.file
    if not path.is_file():
        if weights is not None or not download:
            raise ValueError(_not_there(network, path, asked=weights is not None))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"https://download.pytorch.org/models/{backbone.file}", str(path))
    with torch.device("meta"):  # without the time and the memory of random weights, most of them of layers that are not used
        layers = torchvision.models.get_model(backbone.builder, weights=None).features
    stored = {name.removeprefix("features."): t for name, t in _tensors(path).items() if name.startswith("features.")}
    try:
        layers.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} holds other tensors than torchvision's {backbone.builder}.") from error
    return Lpips(network, layers.float(), _heads(network, heads), weights_hash(path)).to(device)


def available_lpips(network: str = "alex", device: torch.device | str = "cpu") -> tuple[Lpips | None, str]:
    """LPIPS where its weights are on this machine already, and ""; otherwise None, and why in one sentence."""
    try:
        return load_lpips(network, device=device), ""
    except ValueError as error:
        return None, f"lpips: not measured, {error}"


def _not_there(network: str, path: Path, *, asked: bool) -> str:
    if asked:
        return f"weights: there is no file {path}."
    builder = BACKBONES[network].builder
    return f"weights: torchvision's {builder} is not on this machine ({path}); takes a file, or leave to download it."


def _heads(network: str, path: str | Path | None) -> list[Tensor]:
    """The weights (channels,) of every layer, from `lin0.model.1.weight` and so on (1, channels, 1, 1)."""
    found = Path(path) if path is not None else _packaged_heads(network)
    stored = _tensors(found)
    heads = [stored.get(f"lin{k}.model.1.weight", torch.empty(0)).flatten() for k in range(len(BACKBONES[network].taps))]
    if tuple(len(head) for head in heads) != BACKBONES[network].channels:
        raise ValueError(f"heads: {found} holds none for {network}, which takes {BACKBONES[network].channels} channels.")
    return heads


def _packaged_heads(network: str) -> Path:
    places = (("torchmetrics", "functional/image/lpips_models"), ("lpips", "weights/v0.1"))
    for package, folder in places:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            if (file := Path(root) / folder / f"{network}.pth").is_file():
                return file
    raise ValueError("heads: neither torchmetrics nor the package lpips has them here; takes a file of them.")


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """A file's tensors by name, and nothing else that it may hold.

    Raises:
        ValueError: there is no such file, or it holds more than tensors.
    """
    try:
        stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights: {path} cannot be read as a file of tensors alone: {_first_line(error)}") from error
    if not isinstance(stored, Mapping) or not all(isinstance(tensor, Tensor) for tensor in stored.values()):
        raise ValueError(f"weights: {path} holds something else than tensors by name.")
    return stored


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
