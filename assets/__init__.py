"""The project's own small models and images, installed with the package and found from any working folder."""

from __future__ import annotations

from glob import iglob
from pathlib import Path

ASSETS = Path(__file__).parent


def asset_path(path: str | Path) -> str:
    """The path of an asset where `path` names one, otherwise `path` as it is.

    `assets/tiny-sd`, `tiny-sd` and patterns such as `assets/emoji/train-*.tar.gz` name assets. What the working folder has
    under that path, or matches that pattern, takes precedence.
    """
    parts = Path(path).parts
    prefix = parts[:1] if parts[:1] == ("assets",) else ()
    name, rest = parts[len(prefix) : len(prefix) + 1], parts[len(prefix) + 1 :]
    if not name or name[0] not in asset_names() or ".." in rest or _exists(path):
        return str(path)
    asset = ASSETS.joinpath(*name, *rest)
    return str(asset) if _exists(asset) or not Path(*prefix, *name).exists() else str(path)


def _exists(path: str | Path) -> bool:
    return Path(path).exists() or next(iglob(str(path)), None) is not None


def asset_names() -> list[str]:
    """The names of all assets."""
    return sorted(entry.name for entry in ASSETS.iterdir() if entry.is_dir() and not entry.name.startswith(("_", ".")))
