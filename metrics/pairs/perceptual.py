"""LPIPS: perceptual distance of two images, from the features of a network for classification (Zhang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from gendistill.metrics.features.weight_files import downloaded, read_state, weights_hash

# ImageNet's mean and standard deviation, for images in [-1, 1]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision.

    Attributes:
        builder: name of torchvision's function that builds it.
        file: the file of weights that torchvision downloads.
        taps: numbers of the layers of `features` (from 1) whose outputs are compared.
        min_edge: minimum edge of an image in pixels, for the last of these layers to have an output.
    """

    builder: str
    file: str
    taps: tuple[int, ...]
    min_edge: int


BACKBONES = {
    "alex": Backbone("alexnet", "alexnet-owt-7be5be79.pth", (2, 5, 8, 10, 12), 31),
    "vgg": Backbone("vgg16", "vgg16-397923af.pth", (4, 9, 16, 23, 30), 16),
    "squeeze": Backbone("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", (2, 5, 8, 10, 11, 12, 13), 17),
}


class Lpips(nn.Module):
    """The distance of Zhang et al. 2018, eq. 1, with version 0.1 of their weights: lower is more similar, 0 for equal images.

    Feature maps of several layers are scaled to unit length at each position. Their squared differences are weighted per
    channel by the heads, which were fitted to human judgements, averaged over the positions and summed over the layers.

    Attributes:
        name: "lpips-alex", "lpips-vgg" or "lpips-squeeze": three different metrics.
        weights_hash: hash of the backbone's file, 16 hex digits; "" without a file.
    """

    def __init__(self, network: str, layers: nn.Sequential, heads: list[Tensor], weights_hash: str = "") -> None:
        """`layers`: torchvision's `features`; `heads`: the nonnegative weights (channels,) of each compared layer."""
        super().__init__()
        self.name, self.backbone, self.weights_hash = f"lpips-{network}", BACKBONES[network], weights_hash
        self.layers = layers[: self.backbone.taps[-1]].eval().requires_grad_(False)
        for k, head in enumerate(heads):
            self.register_buffer(f"head_{k}", head.detach().float().view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    @torch.inference_mode()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances float32 (N,) of images (N, 3, H, W), float in [-1, 1].

        Raises:
            ValueError: an image is smaller than the network's minimum.
        """
        edge = self.backbone.min_edge
        if min(a.shape[-2:]) < edge:
            raise ValueError(f"images: got {a.shape[-1]}x{a.shape[-2]}, {self.name} expects at least {edge}x{edge}.")
        distance = torch.zeros(len(a), device=a.device)
        for k, (features_a, features_b) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (features_a - features_b).square() * self.get_buffer(f"head_{k}")
            distance += difference.sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, images: Tensor) -> list[Tensor]:
        x, features = (images - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for count, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if count in self.backbone.taps:
                features.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return features


def load_lpips(
    network: str = "alex",
    *,
    weights: str | Path | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Lpips:
    """LPIPS with the weights of a backbone from this machine and the learned heads that the package lpips includes.

    Args:
        network: "alex" (in most papers), "vgg" or "squeeze".
        weights: the backbone's file, a `.pth` of tensors only or a `.safetensors`, with torchvision's names; None: the file in
            torch's hub folder.
        download: whether the file may be downloaded if the hub folder lacks it.

    Raises:
        ValueError: the weights are missing and may not be downloaded, or the file has other contents.
    """
    if network not in BACKBONES:
        raise ValueError(f"network: got {network!r}, expects one of {', '.join(BACKBONES)}.")
    if (found := find_spec("lpips")) is None or found.origin is None:
        raise ValueError("the package lpips is not installed, which has the learned heads; pip install 'gendistill[lpips]'")
    heads_folder = Path(found.origin).parent / "weights" / "v0.1"
    backbone = BACKBONES[network]
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / backbone.file
    description = f"torchvision's {backbone.builder}"
    if weights is None and download:
        path = downloaded(f"https://download.pytorch.org/models/{backbone.file}", description)
    if weights is None and not path.is_file():
        raise ValueError(
            f"weights: {description} is not on this machine ({path}); expects a file, or permission to download it."
        )
    from torchvision.models import get_model  # from an extra; takes seconds to import

    with torch.device("meta"):  # avoids the initialisation of weights, most of which belong to unused layers
        layers = get_model(backbone.builder, weights=None).features
    stored = {name.removeprefix("features."): t for name, t in read_state(path).items() if name.startswith("features.")}
    try:
        layers.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} holds other tensors; expects those of {description}.") from error
    learned = read_state(heads_folder / f"{network}.pth")
    heads = [learned[f"lin{k}.model.1.weight"].flatten() for k in range(len(backbone.taps))]
    return Lpips(network, layers.float(), heads, weights_hash(path)).to(device)


def available_lpips(network: str = "alex", device: torch.device | str = "cpu") -> tuple[Lpips | None, str]:
    """LPIPS and "" if its weights are on this machine; otherwise None and the reason in one sentence."""
    try:
        return load_lpips(network, device=device), ""
    except ValueError as error:
        return None, f"lpips: not measured, {error}"
