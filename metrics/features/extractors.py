"""Frozen networks that map images to features, with the description that a score needs.

An extractor's name identifies the network, its weights and its resizing convention. A bare name means the public weights
and the usual convention; other weights append the first 8 digits of their hash, another convention its name.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from gendistill.assets import ASSETS
from gendistill.metrics.features.emoji_network import EmojiFeatureNetwork
from gendistill.metrics.features.inception import FEATURES, PUBLIC_HASH, SIZE, URL, FidInception
from gendistill.metrics.features.resize import Resize
from gendistill.metrics.features.weight_files import downloaded, read_state, state_hash, weights_hash

EMOJI_FEATURES = ASSETS / "emoji-features"

# Mean and standard deviation of ImageNet's red, green and blue in [0, 255].
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

CPU_BATCH_SIZE = 16  # larger batches are slower on a CPU, as their activations do not fit into its cache

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


class FeatureExtractor(Protocol):
    """A frozen network that maps images to features.

    Attributes:
        name: the metric is named after it (see `metric_name`).
        dim: D, number of features per image.
        weights_hash: 16 hex digits.
        resize: description of the resizing convention.
    """

    name: str
    dim: int
    weights_hash: str
    resize: str

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """The input of `features`, float32 (B, 3, S, S), for `images` uint8 (B, 3, H, W) of any size; thread-safe."""
        ...

    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        """Features float32 (B, D), on the network's device, for `prepared` on the CPU."""
        ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 (B, D) of `images` uint8 (B, 3, H, W) of any size."""
        return self.features(self.prepare(images))


def metric_name(extractor: FeatureExtractor) -> str:
    """The name of the Fréchet distance over an extractor's features, different for each protocol.

    `fid`: Inception-v3 with the public weights and TensorFlow's resize, as in the paper's code and torch-fidelity;
    `fid-clean`: the same with clean-fid's resize. All others, including Inception-v3 with other weights, are `fd-NAME`.
    """
    return {"inception": "fid", "inception-clean": "fid-clean"}.get(extractor.name, f"fd-{extractor.name}")


def network_name(extractor: FeatureExtractor) -> str:
    """The name of an extractor with the hash of its weights."""
    return f"{extractor.name} ({extractor.weights_hash})"


class EmojiFeatures(FeatureExtractor):
    """The pooled layer of the emoji classifier (`assets/emoji-features`), computed on the network's device.

    Images of other sizes are resized with Lanczos, as `assets/emoji` was: bilinear filters would give its own images, at 64
    pixels, a distance of 0.49 from it, in place of 0.20.
    """

    resizing = Resize("clean-lanczos", 32)
    resize = str(resizing)

    def __init__(self, network: EmojiFeatureNetwork, weights_hash: str, name: str = "emoji") -> None:
        self.network, self.weights_hash, self.name = network, weights_hash, name
        self.dim = network.channels[-1]

    @classmethod
    def from_folder(cls, path: str | Path, device: torch.device | str = "cpu") -> "EmojiFeatures":
        """Load a folder with `config.json` and `model.safetensors`; raises FileNotFoundError if one is missing."""
        folder = Path(path)
        digest = weights_hash(folder / "model.safetensors")
        embedded = digest == weights_hash(EMOJI_FEATURES / "model.safetensors")
        network = EmojiFeatureNetwork.load(folder).to(device)
        return cls(network, digest, "emoji" if embedded else f"emoji-{digest[:8]}")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() if images.shape[-2:] == (32, 32) else self.resizing(images)) / 127.5 - 1

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return self.network.features(prepared.to(self.network.stem.weight.device))


class ModuleFeatures(FeatureExtractor):
    """Any module as an extractor.

    Args:
        module: maps images float32 (B, 3, size, size) to features (B, D), or to feature maps (B, D, h, w), which are
            averaged over space. It is set to evaluation mode.
        name: the metric is named after it, with 8 digits of the weights' hash.
        size: height and width of the resized images in pixels; None for `resize="none"`.
        resize: `clean`, `clean-lanczos`, `legacy` or `none` (see `metrics/features/resize.py`).
        normalisation: mean and standard deviation of the channels in [0, 255], such as `IMAGENET`; None: no normalisation.
        weights_hash: 16 hex digits; by default the hash of the module's state dict.
        dim: D; by default it is found with a black image.
        full_name: the complete name, for public weights.

    Raises:
        ValueError: the convention or the size is invalid, or the module's output has another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        size: int | None,
        resize: str = "clean",
        normalisation: Normalisation | None = None,
        device: torch.device | str = "cpu",
        *,
        weights_hash: str | None = None,
        dim: int | None = None,
        full_name: str | None = None,
    ) -> None:
        self.resizing = Resize(resize, size)
        self.resize = str(self.resizing)
        self.weights_hash = weights_hash or state_hash(module.state_dict())
        self.name = full_name or f"{name}-{self.weights_hash[:8]}"
        self.module, self.device = module.eval().requires_grad_(False).to(device), device
        self.normalisation = normalisation
        edge = size or 64
        self.dim = dim or self.features(torch.zeros(1, 3, edge, edge)).shape[1]

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        prepared = self.resizing(images)
        if self.normalisation is not None:
            mean, deviation = (torch.tensor(channel).view(3, 1, 1) for channel in self.normalisation)
            prepared = prepared.sub_(mean).div_(deviation)
        return prepared

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        if prepared.device.type == torch.device(self.device).type == "cpu" and len(prepared) > CPU_BATCH_SIZE:
            return torch.cat([self.features(part) for part in prepared.split(CPU_BATCH_SIZE)])
        features = self.module(prepared.to(self.device))
        if isinstance(features, torch.Tensor) and features.ndim == 4:
            features = features.mean(dim=(2, 3))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(prepared):
            output = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"extractor {self.name}: its module returned {output}, expects (B, D) or (B, D, h, w).")
        return features.float()


class InceptionFeatures(ModuleFeatures):
    """The 2048 pooled features of FID's Inception-v3."""

    def __init__(
        self, weights_path: str | Path | None = None, device: torch.device | str = "cpu", resize: str = "legacy"
    ) -> None:
        """`weights_path`: a `.pth` or `.safetensors`; None: the public file, downloaded once into torch's hub folder.

        Raises:
            ValueError: the file is missing, has other contents, or cannot be downloaded.
        """
        path = Path(weights_path) if weights_path else downloaded(URL, "inception's weights")
        network = FidInception.load(path)
        digest = weights_hash(path)
        # TensorFlow's resize is the usual convention of FID, so the bare name `inception` means it.
        name = "inception" if resize == "legacy" else f"inception-{resize}"
        public = name if digest.startswith(PUBLIC_HASH) else None
        size = None if resize == "none" else SIZE
        super().__init__(network, name, size, resize, None, device, weights_hash=digest, dim=FEATURES, full_name=public)


def torchvision_features(
    network_name: str,
    weights_path: str | Path | None = None,
    device: torch.device | str = "cpu",
    resize: str = "clean",
) -> ModuleFeatures:
    """The input of the last linear layer of a torchvision classifier: for `resnet18`, the 512 pooled features.

    Images are resized to the square size of the network's training, without a crop, and normalised as ImageNet.
    `weights_path` is a `.pth` or `.safetensors`; None: torchvision's default weights, which are downloaded.

    Raises:
        ValueError: torchvision has no such classifier, or the weights belong to another network or cannot be downloaded.
    """
    from torchvision import models

    if network_name not in models.list_models(module=models):
        raise ValueError(f"extractor: got 'torchvision:{network_name}', expects a name of torchvision.models.list_models().")
    public = models.get_model_weights(network_name).DEFAULT
    path = Path(weights_path) if weights_path else downloaded(public.url, f"the weights of torchvision's {network_name}")
    if weights_path is None:
        network = models.get_model(network_name, weights=public)  # reads the file that was just downloaded
    else:
        network = models.get_model(network_name, weights=None, **_as_trained(network_name))
        try:
            network.load_state_dict({key: tensor for key, tensor in read_state(path).items() if "aux" not in key.lower()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights: {path} does not fit torchvision's {network_name} ({reason}).") from error
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"extractor: got 'torchvision:{network_name}', expects a network with a linear layer.")
    parent, _, last = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    digest = weights_hash(path)
    name = network_name if resize == "clean" else f"{network_name}-{resize}"
    size = None if resize == "none" else public.transforms().crop_size[0]
    full_name = None if weights_path else name
    return ModuleFeatures(network, name, size, resize, IMAGENET, device, weights_hash=digest, full_name=full_name)


def _as_trained(network_name: str) -> dict[str, bool]:
    """The arguments with which torchvision builds a network for its own weights, without auxiliary heads."""
    if network_name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    return {}
