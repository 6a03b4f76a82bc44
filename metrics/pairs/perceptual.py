"""LPIPS: how different two pictures look, by a network that was trained to see objects (Zhang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from gendistill.metrics.features.weight_files import downloaded, read_state, weights_hash

# ImageNet's mean and standard deviation, for pictures in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision: its builder's name, the file that torchvision downloads, where features are taken (after
    so many layers of `features`), and the least edge of a picture that reaches the last of them."""

    builder: str
    file: str
    taps: tuple[int, ...]
    least: int


BACKBONES = {
    "alex": Backbone("alexnet", "alexnet-owt-7be5be79.pth", (2, 5, 8, 10, 12), 31),
    "vgg": Backbone("vgg16", "vgg16-397923af.pth", (4, 9, 16, 23, 30), 16),
    "squeeze": Backbone("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", (2, 5, 8, 10, 11, 12, 13), 17),
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
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Lpips:
    """LPIPS of a backbone's weights that are on this machine, with the learned heads that the package lpips comes with.

    Args:
        network: "alex" (as most papers report), "vgg" or "squeeze".
        weights: the backbone's file, `.pth` of tensors alone or `.safetensors`, with torchvision's names; None takes the one
            that torchvision keeps after a download.
        download: whether torchvision may fetch the backbone where it is not there.

    Raises:
        ValueError: there are no weights and none may be fetched, or the file holds something else.
    """
    if network not in BACKBONES:
        raise ValueError(f"network: got {network!r}, takes one of {', '.join(BACKBONES)}.")
    if (found := find_spec("lpips")) is None or found.origin is None:
        raise ValueError("the package lpips is not installed, which has the learned heads; pip install 'gendistill[lpips]'")
    heads_folder = Path(found.origin).parent / "weights" / "v0.1"
    backbone = BACKBONES[network]
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / backbone.file
    what = f"torchvision's {backbone.builder}"
    if weights is None and download:
        path = downloaded(f"https://download.pytorch.org/models/{backbone.file}", what)
    if weights is None and not path.is_file():
        raise ValueError(f"weights: {what} is not on this machine ({path}); takes a file, or leave to download it.")
    from torchvision.models import get_model  # of an extra, and seconds to import

    with torch.device("meta"):  # without the time and the memory of random weights, most of them of layers that are not used
        layers = get_model(backbone.builder, weights=None).features
    stored = {name.removeprefix("features."): t for name, t in read_state(path).items() if name.startswith("features.")}
    try:
        layers.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} holds other tensors than {what}.") from error
    learned = read_state(heads_folder / f"{network}.pth")
    heads = [learned[f"lin{k}.model.1.weight"].flatten() for k in range(len(backbone.taps))]
    return Lpips(network, layers.float(), heads, weights_hash(path)).to(device)


def available_lpips(network: str = "alex", device: torch.device | str = "cpu") -> tuple[Lpips | None, str]:
    """LPIPS where its weights are on this machine already, and ""; otherwise None, and why in one sentence."""
    try:
        return load_lpips(network, device=device), ""
    except ValueError as error:
        return None, f"lpips: not measured, {error}"
