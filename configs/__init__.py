"""Settings of runs that are installed with the package, by name: `demo`, `full`, `gan`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

PRESETS = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}


def preset_path(config: str | Path) -> Path:
    """A file of settings: `config` where it exists, otherwise the preset of that name; `demo` and `configs/demo.yaml` are one.

    Raises:
        ValueError: there is neither.
    """
    path = Path(config)
    if path.is_file():
        return path
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml") and path.stem in PRESETS:
        return PRESETS[path.stem]
    near = get_close_matches(path.stem, PRESETS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"config {config} does not exist; expects a file, or a preset: {', '.join(PRESETS)}{hint}")
