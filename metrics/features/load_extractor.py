"""Loading a feature extractor by name or path."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gendistill.assets import asset_path
from gendistill.metrics.features.extractors import (
    EMOJI_FEATURES,
    EmojiFeatures,
    FeatureExtractor,
    InceptionFeatures,
    torchvision_features,
)
from gendistill.metrics.features.pixel_statistics import PixelStatistics
from gendistill.metrics.features.weight_files import SUFFIXES

NAMES = ("emoji", "inception", "clip", "dinov2", "torchvision", "pixels")
EXPECTED = (
    "'emoji', 'inception', 'clip', 'dinov2', 'pixels', 'torchvision:NAME', open_clip's MODEL/TAG, a .pth or .safetensors of "
    "Inception-v3 weights, or a folder with a CLIP, DINOv2 or emoji-features model"
)


def load_extractor(name_or_path: str | Path, device: torch.device | str = "cpu", resize: str | None = None) -> FeatureExtractor:
    """Load an extractor by its name, from a file of weights or from a folder.

    Args:
        name_or_path: `emoji` (the embedded network), `inception` or `inception:FILE` or the FILE alone (`.pth`,
            `.safetensors`), `clip` or `clip:MODEL/TAG` or `MODEL/TAG` of open_clip, `dinov2` or `dinov2:ID_OR_FOLDER`,
            `torchvision:NAME` or `torchvision:NAME:FILE`, `pixels` (no network), or a folder with an open_clip, DINOv2 or
            `emoji-features` model.
            device: the network's device.
            resize: a convention of `metrics/features/resize.py` in place of the default; `emoji` and CLIP do not support it.

    Raises:
        ValueError: the name or path is unknown, the weights cannot be loaded, or `resize` is not supported.
    """
    is_named = str(name_or_path).partition(":")[0] in NAMES  # whatever the working folder holds
    name = str(name_or_path) if is_named else asset_path(name_or_path)
    kind, _, rest = name.partition(":")
    path = Path(name).expanduser()
    if not is_named and path.is_dir():
        kind, rest = _kind_of_folder(path), str(path)
    elif not is_named and path.suffix in SUFFIXES and path.is_file():
        kind, rest = "inception", str(path)
    elif kind not in NAMES and _is_model_and_tag(name):
        kind, rest = "clip", name
    arguments: Mapping[str, Any] = {} if resize is None else {"resize": resize}
    if resize is not None and kind in ("emoji", "clip", "pixels"):
        raise ValueError(f"resize: got {resize!r} for {name!r}, expects none, as its resizing is fixed.")
    if kind == "emoji" and (not rest or not is_named):
        return EmojiFeatures.from_folder(rest or EMOJI_FEATURES, device)
    if kind == "pixels" and not rest:
        return PixelStatistics()
    if kind == "inception":
        return InceptionFeatures(rest or None, device, **arguments)
    if kind == "torchvision" and rest:
        network, _, weights = rest.partition(":")
        return torchvision_features(network, weights or None, device, **arguments)
    if kind == "dinov2":
        from gendistill.metrics.features.vision_towers import DINOV2, dinov2_features

        return dinov2_features(rest or DINOV2, device, **arguments)
    if kind == "clip":
        from gendistill.metrics.features.vision_towers import CLIP, clip_features

        return clip_features(rest or CLIP, device)
    near = difflib.get_close_matches(kind, NAMES, 1, 0.5)
    raise ValueError(f"extractor: got {name!r}, expects {EXPECTED}" + (f"; did you mean {near[0]!r}?" if near else "."))


def _kind_of_folder(folder: Path) -> str:
    """The kind of extractor in a folder, by its files; "" if unknown."""
    if (folder / "open_clip_config.json").is_file():
        return "clip"
    if not (folder / "config.json").is_file():
        return ""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return ""
    if str(config.get("model_type", "")).startswith("dinov2"):
        return "dinov2"
    return "emoji" if (folder / "model.safetensors").is_file() and "vendors" in config else ""


def _is_model_and_tag(name: str) -> bool:
    model, slash, tag = name.partition("/")
    if not (model and slash and tag) or "/" in tag:
        return False
    import open_clip

    return (model, tag) in open_clip.list_pretrained()
