"""Frozen networks that map pictures to features, and what a figure must say of them.

An extractor's name says which network, weights and resizing convention it stands for. A bare name means public weights
and the convention that the name is known by; other weights add the first 8 digits of their hash, other conventions theirs.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from gendistill.assets import ASSETS
from gendistill.metrics.features.emoji_network import EmojiFeatureNetwork
from gendistill.metrics.features.inception import FEATURES, PUBLIC_HASH, SIZE, URL, FidInception
from gendistill.metrics.features.resize import Resize
from gendistill.metrics.features.weight_files import downloaded, read_state, state_hash, weights_hash

EMOJI_FEATURES = ASSETS / "emoji-features"

# Mean and standard deviation of ImageNet's red, green and blue in [0, 255].
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))

ON_CPU = 16  # pictures that a processor works on together: more are slower, as what they need is fetched from far

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


class FeatureExtractor(Protocol):
    """A frozen network that maps pictures to features.

    name: what the metric is named after (see `metric_name`); dim: D, features a picture; weights_hash: 16 hex digits;
    resize: the resizing convention in words.
    """

    name: str
    dim: int
    weights_hash: str
    resize: str

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """`images` uint8 (B, 3, H, W) of any size to what `features` takes, float32 (B, 3, S, S); threads may call it."""
        ...

    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        """What `prepare` gave, on the CPU, to features float32 (B, D) where the network lies."""
        ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """`images` uint8 (B, 3, H, W) of any size to features float32 (B, D)."""
        return self.features(self.prepare(images))


def metric_name(extractor: FeatureExtractor) -> str:
    """The name of the Fréchet distance over an extractor's features: two protocols never share one.

    `fid`: Inception-v3 with the public weights and TensorFlow's resize, as in the paper's code and torch-fidelity;
    `fid-clean`: the same with clean-fid's resize. All others are `fd-NAME`, Inception-v3 with other weights among them.
    """
    return {"inception": "fid", "inception-clean": "fid-clean"}.get(extractor.name, f"fd-{extractor.name}")


class EmojiFeatures(FeatureExtractor):
    """The pooled layer of the emoji classifier (`assets/emoji-features`); computed where the network lies."""

    resize = "to 32x32, bilinear with antialiasing, in float32, not rounded"

    def __init__(self, network: EmojiFeatureNetwork, weights_hash: str, name: str = "emoji") -> None:
        self.network, self.weights_hash, self.name = network, weights_hash, name
        self.dim = network.channels[-1]

    @classmethod
    def from_folder(cls, path: str | Path, device: torch.device | str = "cpu") -> "EmojiFeatures":
        """From a folder of `config.json` and `model.safetensors`; raises FileNotFoundError if one is missing."""
        folder = Path(path)
        digest = weights_hash(folder / "model.safetensors")
        embedded = digest == weights_hash(EMOJI_FEATURES / "model.safetensors")
        network = EmojiFeatureNetwork.load(folder).to(device)
        return cls(network, digest, "emoji" if embedded else f"emoji-{digest[:8]}")

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        pictures = images.float() / 127.5 - 1
        if pictures.shape[-2:] != (32, 32):
            pictures = F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True)
        return pictures

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return self.network.features(prepared.to(self.network.stem.weight.device))


class ModuleFeatures(FeatureExtractor):
    """Any module as an extractor.

    Args:
        module: from pictures float32 (B, 3, size, size) to features (B, D), or to a map (B, D, h, w), whose mean over
            space is taken. It is put into evaluation mode.
        name: what the metric is named after; 8 digits of the weights' hash are added.
        size: pixels that pictures are brought to; None for `resize="none"`.
        resize: `clean`, `clean-lanczos`, `legacy` or `none` (see `metrics/features/resize.py`).
        normalisation: mean and standard deviation of the channels in [0, 255], such as `IMAGENET`; None leaves them.
        weights_hash: 16 hex digits; by default of the module's state dict.
        dim: D; by default a black picture tells.
        full_name: the name as it is, for weights that everyone has.

    Raises:
        ValueError: the convention or the size is wrong, or the module gives features of another shape.
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
        pictures = self.resizing(images)
        if self.normalisation is not None:
            mean, deviation = (torch.tensor(channel).view(3, 1, 1) for channel in self.normalisation)
            pictures = pictures.sub_(mean).div_(deviation)
        return pictures

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        if prepared.device.type == torch.device(self.device).type == "cpu" and len(prepared) > ON_CPU:
            return torch.cat([self.features(part) for part in prepared.split(ON_CPU)])
        features = self.module(prepared.to(self.device))
        if isinstance(features, torch.Tensor) and features.ndim == 4:
            features = features.mean(dim=(2, 3))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(prepared):
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"extractor {self.name}: its module gave {got}, takes (B, D) or (B, D, h, w).")
        return features.float()


class InceptionFeatures(ModuleFeatures):
    """The 2048 pooled features of FID's Inception-v3."""

    def __init__(
        self, weights_path: str | Path | None = None, device: torch.device | str = "cpu", resize: str = "legacy"
    ) -> None:
        """`weights_path`: a `.pth` or `.safetensors`; None downloads the public file, once, into torch's hub folder.

        Raises:
            ValueError: the file is missing or holds other things, or cannot be downloaded.
        """
        path = Path(weights_path) if weights_path else downloaded(URL, "inception's weights")
        network = FidInception.load(path)
        digest = weights_hash(path)
        # FID is known by TensorFlow's resize, so `inception` alone stands for that.
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
    """What enters the last linear layer of a torchvision classifier: of `resnet18`, the 512 pooled features.

    Pictures are resized to the square that the network was trained on, without a crop, and normalised as ImageNet.
    `weights_path` is a `.pth` or `.safetensors`; None downloads torchvision's default weights.

    Raises:
        ValueError: torchvision has no such classifier, or the weights are another network's or cannot be had.
    """
    from torchvision import models

    if network_name not in models.list_models(module=models):
        raise ValueError(f"extractor: got 'torchvision:{network_name}', takes a name of torchvision.models.list_models().")
    public = models.get_model_weights(network_name).DEFAULT
    path = Path(weights_path) if weights_path else downloaded(public.url, f"the weights of torchvision's {network_name}")
    if weights_path is None:
        network = models.get_model(network_name, weights=public)  # finds the file where it has just been put
    else:
        network = models.get_model(network_name, weights=None, **_as_trained(network_name))
        try:
            network.load_state_dict({key: tensor for key, tensor in read_state(path).items() if "aux" not in key.lower()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights: {path} are not of torchvision's {network_name} ({reason}).") from error
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"extractor: got 'torchvision:{network_name}', which ends in no linear layer; takes one that does.")
    parent, _, last = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    digest = weights_hash(path)
    name = network_name if resize == "clean" else f"{network_name}-{resize}"
    size = None if resize == "none" else public.transforms().crop_size[0]
    full_name = None if weights_path else name
    return ModuleFeatures(network, name, size, resize, IMAGENET, device, weights_hash=digest, full_name=full_name)


def _as_trained(network_name: str) -> dict[str, bool]:
    """What torchvision sets for these where it loads its own weights; their auxiliary heads are left out."""
    if network_name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False, "transform_input": True}
    return {}
