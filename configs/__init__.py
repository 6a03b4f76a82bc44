"""Settings of runs that are installed with the package, by name: `demo`, `full`, `gan`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

PRESETS = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}
ACCELERATE = {file.stem: file for file in sorted((Path(__file__).parent / "accelerate").glob("*.yaml"))}


def accelerate_path(name: str) -> Path | None:
    """The file of a preset of `accelerate launch`, such as `ddp`; None where there is none. `python -m gendistill.configs ddp`
    prints it."""
    return ACCELERATE.get(name)


def preset_path(config: str | Path) -> Path:
    """A file of settings: `config` where it exists, otherwise the preset of that name; `demo` and `configs/demo.yaml` are one.

    Raises:
        ValueError: there is neither.
    """
    path = Path(config).expanduser()
    if path.is_file():
        return path
    if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".yaml") and path.stem in PRESETS:
        return PRESETS[path.stem]
    near = get_close_matches(path.stem, PRESETS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"config {config} does not exist; expects a file, or a preset: {', '.join(PRESETS)}{hint}")
