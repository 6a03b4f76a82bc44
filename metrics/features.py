"""Pictures to feature vectors, once; every distance between sets of pictures is computed from these.

An extractor carries what a figure's protocol must say: which network, which weights, how pictures were resized.
"""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch.nn import functional as F

from gendistill.metrics.emoji_network import EmojiFeatureNetwork
from gendistill.metrics.weights import weights_hash

# Beside this package: the repository's `assets/`, or those that the installed package carries.
EMOJI_FEATURES = Path(__file__).parents[1] / "assets" / "emoji-features"


class FeatureExtractor(Protocol):
    """A frozen network that maps pictures to features.

    name: what the metric is named after (see `metric_name`); dim: D, features a picture; weights_hash: 16 hex digits;
    resize: the resizing convention in words.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def weights_hash(self) -> str: ...
    @property
    def resize(self) -> str: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """`images` uint8 (B, 3, H, W) of any size to features float32 (B, D)."""
        ...


def metric_name(extractor: FeatureExtractor) -> str:
    """`fid` for Inception-v3's features, `fd-NAME` for all others: two protocols never share a name."""
    return "fid" if extractor.name == "inception" else f"fd-{extractor.name}"


class EmojiFeatures:
    """The pooled layer of the emoji classifier (`assets/emoji-features`); computed where the network lies."""

    name = "emoji"
    resize = "to 32x32, bilinear with antialiasing, in float32, not rounded"

    def __init__(self, network: EmojiFeatureNetwork, weights_hash: str) -> None:
        self.network, self.weights_hash = network, weights_hash
        self.dim = network.channels[-1]

    @classmethod
    def from_folder(cls, path: str | Path, device: torch.device | str = "cpu") -> "EmojiFeatures":
        """From a folder of `config.json` and `model.safetensors`; raises FileNotFoundError if one is missing."""
        folder = Path(path)
        return cls(EmojiFeatureNetwork.load(folder).to(device), weights_hash(folder / "model.safetensors"))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pictures = images.to(self.network.stem.weight.device).float() / 127.5 - 1
        if pictures.shape[-2:] != (32, 32):
            pictures = F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True)
        return self.network.features(pictures)


class InceptionFeatures:
    """The 2048 pooled features of FID's Inception-v3 (the TensorFlow weights of 2015-12-05), by torch-fidelity."""

    name = "inception"
    dim = 2048
    resize = "to 299x299, bilinear as TensorFlow 1.x (no antialiasing), as torch-fidelity"

    def __init__(self, weights_path: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        """`weights_path`: torch-fidelity's `.pth`; None takes its usual download (once, into torch's hub folder).

        Raises:
            ImportError: torch-fidelity is not installed.
            FileNotFoundError: there is no such file.
            pickle.UnpicklingError: the file holds more than tensors.
        """
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        except ImportError as error:
            raise ImportError("FID needs the package torch-fidelity: `pip install gendistill[fid]` installs it.") from error
        path = Path(weights_path) if weights_path else _downloaded(fidelity.URL_INCEPTION_V3)
        self.weights_hash = weights_hash(path)
        torch.load(path, "meta", weights_only=True)  # refuse code here: torch-fidelity unpickles whatever it is given
        network = fidelity.FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=path)
        self.network, self.device = network.eval().to(device), device

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.to(self.device))[0]


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    return path


def load_extractor(name_or_path: str | Path, device: torch.device | str = "cpu") -> FeatureExtractor:
    """`emoji` (the embedded network), `inception`, an `.pth` of Inception's weights, or a folder as `emoji-features`.

    Raises:
        ValueError: it is none of these.
    """
    if str(name_or_path) == "emoji":
        return EmojiFeatures.from_folder(EMOJI_FEATURES, device)
    if str(name_or_path) == "inception":
        return InceptionFeatures(device=device)
    path = Path(name_or_path)
    if path.is_file() and path.suffix == ".pth":
        return InceptionFeatures(path, device)
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        return EmojiFeatures.from_folder(path, device)
    near = difflib.get_close_matches(str(name_or_path), ["emoji", "inception"], 1, 0.5)
    raise ValueError(
        f"extractor: got {str(name_or_path)!r}, takes 'emoji', 'inception', a .pth file of Inception-v3 weights or a "
        f"folder with config.json and model.safetensors" + (f"; did you mean {near[0]!r}?" if near else ".")
    )


def extract(
    extractor: FeatureExtractor,
    images: torch.Tensor | Iterable[torch.Tensor],
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Features float32 (N, D) on the CPU of `images`: uint8 (N, 3, H, W), or an iterable of such batches.

    A tensor is cut into batches of `batch_size`; an iterable's batches are taken as they come. `progress` is called
    after each batch with the number of pictures done so far.

    Raises:
        ValueError: the pictures are not uint8 (B, 3, H, W), or there are none.
    """
    batches = images.split(batch_size) if isinstance(images, torch.Tensor) else images
    features, done = [], 0
    for batch in batches:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise ValueError(f"images: got {batch.dtype} {tuple(batch.shape)}, takes torch.uint8 (B, 3, H, W).")
        features.append(extractor(batch).cpu())
        done += len(batch)
        if progress is not None:
            progress(done)
    if done == 0:
        raise ValueError("images: got none, takes at least one picture.")
    return torch.cat(features)
