"""The feature network of a validation or an evaluation whose user names none."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from gendistill.assets import ASSETS, asset_path
from gendistill.metrics.features.available import available_extractor
from gendistill.samplers import Sampler

EMOJI_SIZES = ((32, 32), (64, 64))  # of the embedded models; the emoji network was trained on the first, and resizes to it
NOT_AVAILABLE = (
    "as neither Inception, DINOv2 nor CLIP is on this machine: it compares colours, their layout and detail, and does not see "
    "what an image shows; validation_extractor=inception downloads Inception (91 MB, with gendistill[evaluate]), and a folder "
    "or file names a network of your own"
)


def chosen_extractor(named: str | None, *, embedded: bool) -> tuple[str, str]:
    """The name of the feature network of a validation, an argument of `load_extractor`, and the reason for it.

    Args:
        named: the user's choice.
        embedded: `is_embedded` for the model and its data; the emoji network is for these alone.
    """
    if named is not None:
        return named, "as validation_extractor names it"
    if embedded:
        return "emoji", "the network of the embedded models"
    available = available_extractor()
    return (available, "which is on this machine") if available is not None else ("pixels", NOT_AVAILABLE)


def is_embedded(size: Sequence[int], prompts_of: Any, images: str | None = None) -> bool:
    """Whether a model samples images like those that the emoji network was trained on.

    Args:
        size: of the model's images in pixels.
        prompts_of: the model's tokenizer, or the names of its classes, which its students share.
        images: the images that it is compared with.
    """
    if tuple(size) not in EMOJI_SIZES:
        return False
    return _has_embedded_prompts(prompts_of) or (images is not None and are_embedded_images(images))


def prompts_of(sampler: Sampler) -> Any:
    """What identifies the prompts of a model for `is_embedded`: its tokenizer or its classes."""
    tokenizer = getattr(getattr(sampler, "pipeline", None), "tokenizer", None)
    return sampler.own_prompts if tokenizer is None else tokenizer


def are_embedded_images(images: str) -> bool:
    """Whether a path or a pattern refers to the embedded images of emoji, or to copies of their files."""
    files = [Path(file) for file in glob(asset_path(images))]
    embedded = [ASSETS / "emoji" / file.name for file in files]
    pairs = list(zip(files, embedded, strict=True))
    return bool(pairs) and all(original.is_file() and filecmp.cmp(file, original) for file, original in pairs)


def _has_embedded_prompts(prompts_of: Any) -> bool:
    if hasattr(prompts_of, "get_vocab"):
        return bool(prompts_of.get_vocab() == json.loads((ASSETS / "tiny-sd" / "tokenizer" / "vocab.json").read_text()))
    return prompts_of is not None and list(prompts_of) == json.loads((ASSETS / "tiny-gan" / "gan.json").read_text())["classes"]
