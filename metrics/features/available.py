"""The feature networks that are on this machine: their weights were downloaded, and their packages are installed."""

from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from gendistill.metrics.features.inception import URL
from gendistill.metrics.features.vision_towers import CLIP, DINOV2


def available_extractor() -> str | None:
    """The first of `inception`, `dinov2` and `clip` that `load_extractor` opens without a download; None if there is none."""
    for name, is_available in {"inception": _inception, "dinov2": _dinov2, "clip": _clip}.items():
        if is_available():
            return name
    return None


def _inception() -> bool:
    file = Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]
    return find_spec("torchvision") is not None and file.is_file()


def _dinov2() -> bool:
    return all(_cached(DINOV2, file) for file in ("config.json", "model.safetensors"))


def _clip() -> bool:
    if find_spec("open_clip") is None:
        return False
    import open_clip  # from an extra; takes seconds to import

    config = open_clip.get_pretrained_cfg(*CLIP.split("/"))
    repository = str(config.get("hf_hub", "")).rstrip("/")
    if repository:
        return any(_cached(repository, f"open_clip_{file}") for file in ("model.safetensors", "pytorch_model.bin"))
    return (Path("~/.cache/clip").expanduser() / str(config.get("url", "")).rsplit("/", 1)[-1]).is_file()


def _cached(repository: str, file: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, file), str)
