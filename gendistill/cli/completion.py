"""What the Tab key completes besides commands and options: names of methods, metrics, settings and presets.

Names come from the catalogue, which is cached, so that a shell does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Iterable

FORMATS = ("diffusers", "checkpoint", "lora", "kohya", "onnx", "openvino")
EXTRACTORS = ("emoji", "inception", "clip", "dinov2", "pixels", "torchvision:")

Completions = list[tuple[str, str]]  # values, each with its help


def complete_method(incomplete: str) -> Completions:
    """Names of methods, each with its summary."""
    from gendistill.cli.catalogue import catalogue

    return _starting(incomplete, ((entry.name, entry.summary) for entry in catalogue().methods))


def complete_metrics(incomplete: str) -> Completions:
    """The last of several names, separated by commas."""
    from gendistill.cli.catalogue import catalogue

    before, comma, last = incomplete.rpartition(",")
    return [
        (f"{before}{comma}{name}", text) for name, text in _starting(last, ((m.name, m.summary) for m in catalogue().metrics))
    ]


def complete_setting(incomplete: str) -> Completions:
    """`trainer.max_steps=`: the name of a setting, to be followed by its value."""
    from gendistill.cli.catalogue import catalogue

    return _starting(incomplete, ((f"{setting.name}=", setting.meaning) for setting in catalogue().settings))


def complete_name(incomplete: str) -> Completions:
    """What `explain` explains: settings, sections, and last names of settings."""
    from gendistill.cli.catalogue import catalogue
    from gendistill.settings.explanation import nameable

    settings = catalogue().settings
    meanings = {setting.name: setting.meaning for setting in settings}
    return _starting(incomplete, ((name, meanings.get(name, "")) for name in nameable(settings)))


def complete_extractor(incomplete: str) -> Completions:
    """Names of feature extractors."""
    return _starting(incomplete, ((name, "") for name in EXTRACTORS))


def complete_format(incomplete: str) -> Completions:
    """Names of export formats."""
    return _starting(incomplete, ((name, "") for name in FORMATS))


def complete_config(incomplete: str) -> Completions:
    """YAML files of the folder that is being typed, and its folders."""
    from pathlib import Path

    folder, _, start = incomplete.rpartition("/")
    found = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{start}*"))
    shown = [f"{folder}/{path.name}" if "/" in incomplete else path.name for path in found]
    return [
        (f"{name}/" if path.is_dir() else name, "")
        for path, name in zip(found, shown, strict=True)
        if path.is_dir() or path.suffix in (".yaml", ".yml")
    ]


def _starting(incomplete: str, values: Iterable[tuple[str, str]]) -> Completions:
    return [(value, text) for value, text in values if value.startswith(incomplete)]
