"""Paths in settings, made absolute where a run stores them, so that they are found from any working folder."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from gendistill.assets import ASSETS, asset_names
from gendistill.methods import RunConfig
from gendistill.metrics.features.load_extractor import NAMES
from gendistill.samplers.single_file import ARCHITECTURES
from gendistill.samplers.weighted_lora import split_weight
from gendistill.settings.explanation import is_path
from gendistill.settings.section import setting_names

# Values of these settings that are names, whatever the working folder holds.
NAMED: dict[str, tuple[str, ...]] = {
    "validation_extractor": NAMES,
    "teacher_config": tuple(folder.name for folder in ARCHITECTURES.iterdir()),
    "discriminator": ("fresh",),
}


def located(config: RunConfig) -> RunConfig:
    """The settings with absolute paths. Hub ids, classes, names of assets, and paths of nothing stay as they are."""
    for name in setting_names(type(config)):
        if is_path(type(config), name):
            config = _with(config, name.split("."))
    return config


def _with(section: Any, names: list[str]) -> Any:
    name, *rest = names
    value = getattr(section, name)
    if rest:
        changed = _with(value, rest)
    elif isinstance(value, dict):
        changed = {absolute_path(path): each for path, each in value.items()}
    elif isinstance(value, list):
        changed = [_absolute_lora(each) for each in value]
    else:
        is_name = value is None or value.partition(":")[0] in NAMED.get(name, ())
        changed = value if is_name else absolute_path(value, always=name in ("out", "cache"))
    return section.model_copy(update={name: changed})


def _absolute_lora(text: str) -> str:
    """`FILE` or `FILE:WEIGHT` with the absolute path of the file."""
    path, _ = split_weight(text)
    return absolute_path(path) + text.removeprefix(path)


def absolute_path(value: str, *, always: bool = False) -> str:
    """The absolute form of a path or pattern of existing files, otherwise the value; `always` for a folder to be created."""
    path = Path(value).expanduser()
    absolute = Path(os.path.abspath(path))
    if always or path.is_absolute():
        return str(absolute)
    name = path.parts[path.parts[:1] == ("assets",) :][:1]
    if absolute.resolve().is_relative_to(ASSETS.resolve()) and name and name[0] in asset_names():
        return value  # from a checkout too: the name is found from any folder
    return str(absolute) if path.exists() or ("*" in value and glob.glob(str(path))) else value
