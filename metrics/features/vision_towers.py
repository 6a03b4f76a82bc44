"""The image encoders of CLIP and DINOv2 as feature extractors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from gendistill.assets import asset_path
from gendistill.metrics.features.extractors import IMAGENET, FeatureExtractor, ModuleFeatures
from gendistill.metrics.features.weight_files import state_hash, unreachable, weights_hash

CLIP = "ViT-L-14-336/openai"  # of CMMD (Jayasumana et al. 2024)
DINOV2 = "facebook/dinov2-large"  # of FD-DINOv2 (Stein et al. 2023)
DINOV2_SIZE = 224

Preprocess = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class OpenedClip:
    """An open_clip model with its preprocessing and tokenizer.

    Attributes:
        name: the folder's name or open_clip's `MODEL/TAG`.
        weights_hash: 16 hex digits.
    """

    model: Any  # open_clip's CLIP or CustomTextCLIP
    preprocess: Preprocess
    tokenizer: Callable[[list[str]], torch.Tensor]
    name: str
    weights_hash: str


def open_clip_model(name_or_path: str | Path, field: str) -> OpenedClip:
    """Load a model from a folder or by its name in open_clip's list; `field` is the setting that errors name.

    Args:
        name_or_path: a folder with `open_clip_config.json` and `open_clip_model.safetensors`, such as `assets/tiny-clip`; or
            `MODEL/TAG`, such as `ViT-B-32/laion2b_s34b_b79k`, which is downloaded once.

    Raises:
        FileNotFoundError: the folder lacks its weights.
        ValueError: open_clip does not list the model, or it cannot be downloaded.
    """
    import open_clip  # from an extra; takes seconds to import

    folder = Path(asset_path(name_or_path))
    if (folder / "open_clip_config.json").is_file():
        digest = weights_hash(folder / "open_clip_model.safetensors")
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        return OpenedClip(model, preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"), folder.resolve().name, digest)
    name, _, tag = str(name_or_path).partition("/")
    if (name, tag) not in open_clip.list_pretrained():
        raise ValueError(
            f"{field}: got {str(name_or_path)!r}, expects a folder with open_clip_config.json or MODEL/TAG of "
            f"open_clip.list_pretrained(), such as 'ViT-B-32/laion2b_s34b_b79k'."
        )
    try:
        weights = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
    except OSError as error:
        raise unreachable(f"CLIP {str(name_or_path)!r}", "its model hub", error) from error
    model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=tag)
    return OpenedClip(model, preprocess, open_clip.get_tokenizer(name), str(name_or_path), weights_hash(weights))


class ClipFeatures(FeatureExtractor):
    """Image embeddings of an open_clip model, not normalised, with the model's preprocessing."""

    def __init__(self, clip: OpenedClip, name: str, device: torch.device | str = "cpu") -> None:
        self.network, self.device = clip.model.visual.eval().requires_grad_(False).to(device), device
        self.preprocess, self.name, self.weights_hash = clip.preprocess, name, clip.weights_hash
        prepared = self.preprocess(Image.new("RGB", (8, 8)))
        self.dim = self.features(prepared[None]).shape[1]
        steps = getattr(self.preprocess, "transforms", [])
        self.resize = f"to {prepared.shape[-1]}x{prepared.shape[-2]}, open_clip's own: {_description(steps)}"

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images.cpu()])

    @torch.inference_mode()
    def features(self, prepared: torch.Tensor) -> torch.Tensor:
        return self.network(prepared.to(self.device)).float()


def clip_features(name_or_path: str | Path, device: torch.device | str = "cpu") -> ClipFeatures:
    """The image encoder of a model as an extractor; arguments and errors as `open_clip_model`."""
    clip = open_clip_model(name_or_path, "extractor")
    local = Path(asset_path(name_or_path)).is_dir()
    return ClipFeatures(clip, f"clip-{clip.weights_hash[:8]}" if local else f"clip-{clip.name.replace('/', '-')}", device)


def _description(steps: list[object]) -> str:
    resizing = [
        " ".join(repr(step).split()) for step in steps if type(step).__name__ in ("Resize", "CenterCrop", "ResizeKeepRatio")
    ]
    return ", ".join(resizing) or "none"


class _ClassToken(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images).last_hidden_state[:, 0]


def dinov2_features(
    folder_or_id: str | Path = DINOV2, device: torch.device | str = "cpu", resize: str = "clean"
) -> ModuleFeatures:
    """The class token of DINOv2 after its last norm, as in FD-DINOv2 (Stein et al. 2023); ViT-L/14 by default.

    Images are resized to 224x224 without a crop, or to the model's image size if it is smaller, and normalised as ImageNet.
    A hub id is downloaded once, safetensors only.

    Raises:
        ValueError: the model does not exist, or cannot be downloaded.
    """
    from transformers import AutoModel

    local = Path(folder_or_id).is_dir()
    try:
        model, loading = AutoModel.from_pretrained(str(folder_or_id), use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        if local:
            reason = str(error).split("\n", 1)[0]
            raise ValueError(f"extractor: {folder_or_id} cannot be read ({reason}); expects a folder of DINOv2.") from error
        raise unreachable(f"DINOv2 {str(folder_or_id)!r}", "the Hugging Face hub", error) from error
    if not model.config.model_type.startswith("dinov2"):
        raise ValueError(f"extractor: {folder_or_id} is a {model.config.model_type}; expects a DINOv2.")
    if missing := sorted(loading["missing_keys"]):  # transformers initialises these at random
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"extractor: {folder_or_id} lacks {len(missing)} of its weights ({names}); expects all of them.")
    name = "dinov2" if local or str(folder_or_id) == DINOV2 else str(folder_or_id).replace("/", "-").removeprefix("facebook-")
    name += "" if resize == "clean" else f"-{resize}"
    size = None if resize == "none" else min(DINOV2_SIZE, model.config.image_size)
    digest = state_hash(model.state_dict())
    full_name = None if local else name
    module = _ClassToken(model)
    return ModuleFeatures(module, name, size, resize, IMAGENET, device, weights_hash=digest, full_name=full_name)
