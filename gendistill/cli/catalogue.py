"""What the registries hold, as plain data: methods, metrics, families and settings, for help, completion and listings.

Reading the registries imports torch, which takes seconds. So their contents are written to the user's cache folder, and read
from there until a file of the installation or of a plug-in changes.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gendistill import __version__
from gendistill.runtime.files import atomic_write
from gendistill.runtime.plugins import load_plugins
from gendistill.settings.explanation import SettingExplanation, explanations

DOCS = "https://gendistill.readthedocs.io/en/latest/"  # `Documentation` in pyproject.toml


@dataclass(frozen=True)
class CatalogueEntry:
    """A method, metric or family: its name, one sentence about it, and its page, None where it is a plug-in's."""

    name: str
    summary: str
    docs: str | None


@dataclass(frozen=True)
class Catalogue:
    """Everything that is registered; `planned` are the methods that `plan --train` knows."""

    methods: list[CatalogueEntry]
    metrics: list[CatalogueEntry]
    families: list[CatalogueEntry]
    settings: list[SettingExplanation]
    planned: list[str]


@lru_cache
def catalogue() -> Catalogue:
    """The catalogue of this installation and its plug-ins."""
    file, key = cache_file(), _installation()
    with suppress(OSError, ValueError, TypeError, KeyError):  # there is none, or one of another version
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["installation"] == key:
            return _from_json(saved["catalogue"])
    found = read_registries()
    with suppress(OSError, ValueError):  # a folder that cannot be written to: the next call reads the registries again
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps({"installation": key, "catalogue": asdict(found)}), encoding="utf-8")
    return found


def cache_file() -> Path:
    """Where the catalogue is cached: in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gendistill" / "catalogue.json"


def read_registries() -> Catalogue:
    """The catalogue, from the registries themselves."""
    from gendistill.methods import RECIPES
    from gendistill.metrics.registry import METRICS
    from gendistill.run.config import config_class
    from gendistill.samplers.families import FAMILIES

    load_plugins()
    return Catalogue(
        methods=[
            CatalogueEntry(name, recipe.summary, _page(type(recipe).__module__, f"methods/{name.replace('_', '-')}/"))
            for name, recipe in RECIPES.items()
        ],
        metrics=[
            CatalogueEntry(name, metric.explanation.rstrip("."), _page(metric.compute.__module__, f"metrics/#{name}"))
            for name, metric in METRICS.items()
        ],
        families=[
            CatalogueEntry(
                type(family).__name__,
                f"{family.summary} ({', '.join(family.pipelines)})".strip(),
                _page(type(family).__module__, "families/"),
            )
            for family in FAMILIES
        ],
        settings=explanations(config_class(), {recipe.section: name for name, recipe in RECIPES.items()}),
        planned=[name for name, recipe in RECIPES.items() if recipe.supports.planning],
    )


def _page(module: str, path: str) -> str | None:
    """The address of a page; None for what another package registers."""
    return DOCS + path if module.startswith("gendistill.") else None


def _from_json(saved: dict[str, Any]) -> Catalogue:
    entries = {kind: [CatalogueEntry(**entry) for entry in saved[kind]] for kind in ("methods", "metrics", "families")}
    return Catalogue(**entries, settings=[SettingExplanation(**each) for each in saved["settings"]], planned=saved["planned"])


def _installation() -> list[Any]:
    """What the catalogue depends on: the version, the plug-ins, and when a file of the plug-ins was last written."""
    points = sorted((point.name, point.value) for point in entry_points(group="gendistill"))
    modules = ["gendistill", "gendistill.metrics", "gendistill.samplers", *(value.partition(".")[0] for _, value in points)]
    return [__version__, [list(point) for point in points], max(map(_last_written, modules))]


def _last_written(module: str) -> float:
    with suppress(ModuleNotFoundError):
        if (spec := find_spec(module)) is not None and spec.origin:
            file = Path(spec.origin)
            files = file.parent.rglob("*.py") if spec.submodule_search_locations else [file]
            return max((each.stat().st_mtime for each in files), default=0.0)
    return 0.0
